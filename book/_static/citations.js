// A citation shows its entry on hover and on keyboard focus. The build leaves the text in the link's title.
document.addEventListener("DOMContentLoaded", () => {
  const tip = document.createElement("div");
  Object.assign(tip, { id: "citation-tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);

  const hide = () => { tip.hidden = true; };
  const show = (link) => {
    tip.textContent = link.dataset.entry;
    tip.hidden = false;
    const { left, top, bottom } = link.getBoundingClientRect();
    const below = bottom + tip.offsetHeight + 12 < innerHeight;
    tip.style.top = `${scrollY + (below ? bottom + 6 : top - tip.offsetHeight - 6)}px`;
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  };
  for (const link of document.querySelectorAll('a.reference.internal[href*="bibliography.html#"][title]')) {
    link.dataset.entry = link.title;
    link.removeAttribute("title"); // or the browser would show its own box too
    link.setAttribute("aria-describedby", tip.id);
    for (const event of ["mouseenter", "focus"]) link.addEventListener(event, () => show(link));
    for (const event of ["mouseleave", "blur"]) link.addEventListener(event, hide);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
});
