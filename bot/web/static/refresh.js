// Keeps the page of something that still changes up to date, without moving what is being read.
const live = () => document.querySelector("#live[data-refresh]");

async function refresh() {
  if (!live() || document.hidden || document.querySelector("dialog[open]")) return;
  const answer = await fetch(location.href, { cache: "no-cache" });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("#live");
  const old = live();
  if (!old || !fresh || fresh.innerHTML === old.innerHTML) return;
  const isOpen = [...old.querySelectorAll("details")].map((each) => each.open);
  const scrolled = [...old.querySelectorAll(".frames")].map((each) => each.scrollLeft);
  old.replaceWith(fresh);
  fresh.querySelectorAll("details").forEach((each, index) => { each.open = isOpen[index] ?? false; });
  fresh.querySelectorAll(".frames").forEach((each, index) => { each.scrollLeft = scrolled[index] ?? 0; });
}

async function keepFresh() {
  while (live()) {
    await new Promise((done) => setTimeout(done, 1000 * Number(live().dataset.refresh)));
    await refresh().catch(() => {});
  }
}
keepFresh();
// A phone that wakes up shows what is new at once.
document.addEventListener("visibilitychange", () => { refresh().catch(() => {}); });
