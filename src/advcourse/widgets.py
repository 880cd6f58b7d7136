"""The one control of the course: a slider over figures.

With a kernel it draws again for any value; on a published page, where there is none, the same control flips through
frames drawn beforehand; where scripts are stripped, the frames stand side by side as a contact sheet.
"""

from __future__ import annotations

import importlib.util
import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Integral, Real
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

MAX_FRAMES = 12  # a dozen frames weigh a few hundred kB: as much as a page, or a diff, should carry
DPI = 90
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# Without the script below every frame is visible; the page's theme, or JupyterLab's, lends its colours.
_STYLE = """
.explore { --ink: var(--pst-color-text-base, var(--jp-ui-font-color1, #222832));
  --line: var(--pst-color-border, var(--jp-border-color2, #c9ced6));
  --accent: var(--pst-color-primary, var(--jp-brand-color1, #1b5e8c));
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); gap: .75rem;
  margin: 1.25rem 0; padding: .9rem; border: 1px solid var(--line); border-radius: .6rem; color: var(--ink); }
.explore figure { margin: 0; text-align: center; }
.explore img { display: block; width: auto; max-width: 100%; height: auto; margin: 0 auto;
  background: #fff; border-radius: .35rem; }
.explore figcaption { margin: .35rem 0 0; font-size: .9em; color: inherit; }
.explore.live { display: block; }
.explore.live figcaption, .explore figure[hidden] { display: none; }
.explore label { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1rem; margin: 0 0 .8rem;
  font-size: .95em; }
.explore input { flex: 1 1 7rem; min-width: 0; height: 1.5rem; margin: 0; accent-color: var(--accent);
  cursor: pointer; }
.explore input:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: .3rem; }
.explore output { min-width: 4ch; font-weight: 600; font-variant-numeric: tabular-nums; text-align: right; }
"""

# The control exists only where the script runs: a page that strips it is left with no dead slider.
_SCRIPT = """
(() => {
  const box = document.currentScript.closest(".explore");
  const frames = [...box.querySelectorAll("figure")];
  const label = document.createElement("label");
  const input = document.createElement("input");
  const output = document.createElement("output");
  Object.assign(input, { type: "range", min: 0, max: frames.length - 1, step: 1, value: box.dataset.start });
  label.append(box.dataset.label, input, output);
  const show = () => {
    frames.forEach((frame, i) => { frame.hidden = i !== input.valueAsNumber; });
    output.textContent = frames[input.valueAsNumber].dataset.value;
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", show);
  box.prepend(label);
  box.classList.add("live");
  show();
})();
"""


@dataclass(frozen=True)
class Explorer:
    """A slider over figures, made by :func:`explore`; Jupyter displays it.

    Attributes:
        draw: Draws the figure for one value.
        values: The values that have a frame, in the slider's order.
        start: The number of the frame that it opens with.
        label: What the slider changes.
        alt: Describes the figure for one value in words.
        show: Writes one value.
        frames: One `<figure>` for each value.
    """

    draw: Callable[[Any], Figure]
    values: tuple[Any, ...]
    start: int
    label: str
    alt: Callable[[Any], str]
    show: Callable[[Any], str]
    frames: tuple[str, ...]

    def __repr__(self) -> str:
        return f"explore({self.label}: {', '.join(map(self.show, self.values))})"

    def _repr_html_(self) -> str:
        frames = "\n".join(self.frames)
        head = f'<div class="explore" data-label="{escape(self.label)}" data-start="{self.start}">'
        return f"{head}\n<style>{_STYLE}</style>\n{frames}\n<script>{_SCRIPT}</script>\n</div>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": self._repr_html_()}
        if _has_kernel() and importlib.util.find_spec("ipywidgets"):
            bundle[WIDGET_VIEW] = self._live()._repr_mimebundle_()[WIDGET_VIEW]
        return bundle

    def _live(self) -> Any:
        """The same control as a widget, which draws again for every value the reader picks."""
        import ipywidgets

        opening = self.values[self.start]
        options: dict[str, Any] = {"description": self.label, "continuous_update": False}
        if not all(isinstance(value, Real) for value in self.values):
            shown = [(self.show(value), value) for value in self.values]
            slider = ipywidgets.SelectionSlider(options=shown, value=opening, **options)
        else:
            options |= {"value": opening, "min": min(self.values), "max": max(self.values), "readout": False}
            if all(isinstance(value, Integral) for value in self.values):
                slider = ipywidgets.IntSlider(**options)
            else:
                slider = ipywidgets.FloatSlider(step=(options["max"] - options["min"]) / 120 or 1, **options)
        picture = ipywidgets.HTML(self.frames[self.start])

        def redraw(change: dict[str, Any]) -> None:
            picture.value = _frame(self.draw, change["new"], self.label, self.alt, self.show)

        slider.observe(redraw, "value")
        return ipywidgets.VBox([slider, picture])


def explore(
    draw: Callable[[Any], Figure],
    values: Sequence[Any],
    *,
    label: str,
    alt: str | Callable[[Any], str],
    fmt: str | None = None,
    start: Any = None,
) -> Explorer:
    """Turn a function that draws into a slider.

    Args:
        draw: Takes one value and returns a new matplotlib figure. Numbers between the given ones may be asked of it
            when a kernel is there (whole ones if all the given ones are).
        values: The values that get a frame on a page without a kernel, at most 12, in the slider's order.
        label: What the slider changes, as read beside it and aloud.
        alt: What the figure shows in words, for those who do not see it: a function of the value, or a format
            string such as `"The attacked image at ε = {:g}"`.
        fmt: How a value is written, a format string; `{:g}` for numbers and `{}` for anything else by default.
        start: The one of `values` that the control opens with; None for the first.

    Returns:
        The control. Leave it as the last expression of a cell.

    Raises:
        ValueError: There are no values or too many, `start` is none of them, a text is empty, or `draw` returns
            something else than a figure.

    Example:
        >>> from matplotlib.figure import Figure
        >>> def line(slope):
        ...     figure = Figure(figsize=(2, 2))
        ...     figure.subplots().plot([0, 1], [0, slope])
        ...     return figure
        >>> explore(line, [0, 0.5, 1], label="slope", alt="A line of slope {:g}")
        explore(slope: 0, 0.5, 1)
    """
    values = tuple(values)
    if not 1 <= len(values) <= MAX_FRAMES:
        raise ValueError(
            f"got {len(values)} values, expected 1 to {MAX_FRAMES}: each is a stored picture, so pick a telling few"
        )
    if start is not None and start not in values:
        raise ValueError(f"got start={start!r}, expected one of the values: {values}")
    if not label.strip():
        raise ValueError("got an empty label, expected the name of what the slider changes")
    if fmt is None:
        fmt = "{:g}" if all(isinstance(value, Real) for value in values) else "{}"
    describe = alt.format if isinstance(alt, str) else alt
    frames = tuple(_frame(draw, value, label, describe, fmt.format) for value in values)
    return Explorer(draw, values, 0 if start is None else values.index(start), label, describe, fmt.format, frames)


def _frame(
    draw: Callable[[Any], Figure], value: Any, label: str, alt: Callable[[Any], str], show: Callable[[Any], str]
) -> str:
    figure, words, text = draw(value), alt(value), show(value)
    if not isinstance(figure, Figure):
        raise ValueError(
            f"draw({value!r}) returned {type(figure).__name__}, expected a matplotlib Figure: end it with `return fig`"
        )
    if not words.strip():
        raise ValueError(f"alt gives no text for {value!r}, expected what the figure shows in words")
    png = io.BytesIO()
    # No Software entry: the bytes then depend on the picture and not on matplotlib's version number.
    figure.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    plt.close(figure)  # or the notebook would show it once more below the slider
    source = f"data:image/png;base64,{b64encode(png.getvalue()).decode()}"
    return (
        f'<figure data-value="{escape(text)}"><img alt="{escape(words)}" src="{source}">'
        f"<figcaption>{escape(label)} = {escape(text)}</figcaption></figure>"
    )


def _has_kernel() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")
