"use strict";
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
