// Pictures below the first screen wait until the page is there; then they are fetched all the same, for who prints it.
addEventListener("load", () => {
  for (const picture of document.querySelectorAll("img[loading=lazy]")) picture.loading = "eager";
});
