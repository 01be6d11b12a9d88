// Shows the pictures of a page large: by click, with the arrow keys, and by swiping. Without it they are plain links.
const dialog = document.querySelector("#lightbox");
let shown = [];
let at = 0;

function show(index) {
  at = (index + shown.length) % shown.length;
  const link = shown[at];
  const image = dialog.querySelector("img");
  image.src = link.href;
  image.alt = link.dataset.words;
  dialog.querySelector("p").textContent = link.dataset.words;
  dialog.querySelector(".rest").textContent = `${at + 1} / ${shown.length}`;
}

// The epoch that is kept is seen at once, beside the base model.
for (const best of document.querySelectorAll(".frames .best")) {
  const frames = best.parentElement;
  const base = frames.firstElementChild;
  frames.scrollLeft = best.offsetLeft - frames.offsetLeft - 2 * base.offsetWidth;
  if (innerWidth < 520) frames.scrollLeft += base.offsetWidth - 12;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-lightbox]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  shown = [...document.querySelectorAll("a[data-lightbox]")].filter((each) => each.dataset.lightbox === link.dataset.lightbox);
  show(shown.indexOf(link));
  dialog.showModal();
});

dialog.addEventListener("click", (event) => {
  const button = event.target.closest("button[value]");
  if (button && button.value) show(at + Number(button.value));
  // Beside the picture.
  if (event.target === dialog) dialog.close();
});

dialog.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by) return;
  event.preventDefault();
  show(at + by);
});

let touchedAt = null;
dialog.addEventListener("touchstart", (event) => { touchedAt = event.touches.length === 1 ? event.touches[0].clientX : null; }, { passive: true });
dialog.addEventListener("touchend", (event) => {
  if (touchedAt === null) return;
  const moved = event.changedTouches[0].clientX - touchedAt;
  if (Math.abs(moved) > 40) show(at + (moved > 0 ? -1 : 1));
});
dialog.addEventListener("close", () => { shown[at]?.focus(); });
