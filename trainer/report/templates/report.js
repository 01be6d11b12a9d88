"use strict";
// Paper has no scrolling: load and open everything.
addEventListener("beforeprint", () => {
  for (const image of document.images) image.loading = "eager";
  for (const details of document.querySelectorAll("details")) details.open = true;
});
const input = document.querySelector("#filter");
if (input) {
  input.closest("form").hidden = false;
  const tiles = [...document.querySelectorAll("#images .tile")];
  const texts = tiles.map((tile) => tile.textContent.toLowerCase() + " " + tile.dataset.about.toLowerCase());
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    tiles.forEach((tile, index) => {
      const number = tile.id.slice(3);
      tile.hidden = !words.every((word) => (/^\d+$/.test(word) ? number === word : texts[index].includes(word)));
    });
  });
}
