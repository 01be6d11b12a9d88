// Decides about images without loading the page again, and draws crops. Without it the forms work as they are.
const status = document.querySelector("#status");

function say(words, isBad) {
  status.textContent = words;
  status.classList.toggle("bad", isBad);
}

function part(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.querySelector("article, #bar");
}

async function send(form, submitter) {
  const fields = new URLSearchParams(new FormData(form, submitter));
  const answer = await fetch(form.action, { method: "POST", body: fields, headers: { "X-Requested-With": "fetch" } });
  if (!(answer.headers.get("Content-Type") || "").startsWith("application/json")) {
    say(await answer.text(), true);
    return;
  }
  const { tile, bar, said } = await answer.json();
  const old = form.closest("article");
  const fresh = part(tile);
  const focused = document.activeElement;
  const others = [...old.querySelectorAll("textarea")].filter((each) => each.form !== form);
  // A caption that is being written, and not saved, stays.
  for (const each of others) {
    if (each.value !== each.defaultValue) fresh.querySelector(`#${each.id}`).value = each.value;
  }
  old.replaceWith(fresh);
  document.querySelector("#bar").replaceWith(part(bar));
  if (old.contains(focused)) {
    const again = focused.id ? fresh.querySelector(`#${focused.id}`) : [...fresh.querySelectorAll("button")].find((each) => each.textContent === focused.textContent);
    again?.focus();
  }
  say(said, answer.status !== 200);
}

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-tile]");
  if (form) {
    event.preventDefault();
    send(form, event.submitter).catch(() => say(status.dataset.failed || "⚠", true));
  } else if (event.target.matches("form[data-apply]")) {
    event.submitter.disabled = true;
    document.body.setAttribute("aria-busy", "true");
  }
});

// A caption is saved when its field is left, or by Ctrl+Enter, which goes on to the next.
document.addEventListener("change", (event) => {
  const form = event.target.matches("textarea[name=caption]") && event.target.form;
  if (form) form.requestSubmit(form.querySelector("button[value=caption]"));
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !event.target.matches("textarea[name=caption]")) return;
  const all = [...document.querySelectorAll("textarea[name=caption]")];
  const next = all[all.indexOf(event.target) + 1];
  event.preventDefault();
  if (next) next.focus(); else event.target.blur();
});

// -- crops: a rectangle is drawn with the pointer; its fields can be typed too ----------------------------------------

function sides(form) {
  return ["left", "top", "right", "bottom"].map((name) => form.elements[name]);
}

function draw(form) {
  const canvas = form.querySelector("canvas");
  if (!canvas) return;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = width;
  canvas.height = height;
  const values = sides(form).map((field) => parseFloat(field.value.replace(",", ".")) / 100);
  const context = canvas.getContext("2d");
  if (values.some(Number.isNaN)) return;
  const [left, top, right, bottom] = values;
  context.fillStyle = "rgb(0 0 0 / .6)";
  context.fillRect(0, 0, width, height);
  context.clearRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
  context.strokeStyle = "#fff";
  context.lineWidth = 2;
  context.strokeRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
}

function openCrop(form) {
  if (form.querySelector(".crop")) return;
  const frame = document.createElement("div");
  frame.className = "crop";
  const image = new Image();
  image.src = form.dataset.crop;
  image.alt = "";
  image.draggable = false;
  const canvas = document.createElement("canvas");
  frame.append(image, canvas);
  form.prepend(frame);
  image.addEventListener("load", () => draw(form));
  form.addEventListener("input", () => draw(form));
  const whole = form.querySelector("[data-whole]");
  whole.hidden = false;
  whole.addEventListener("click", () => { for (const field of sides(form)) field.value = ""; draw(form); });
  let from = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const share = (value, size) => Math.min(Math.max(value / size, 0), 1);
    return [share(event.clientX - box.left, box.width), share(event.clientY - box.top, box.height)];
  };
  frame.addEventListener("pointerdown", (event) => { from = at(event); frame.setPointerCapture(event.pointerId); event.preventDefault(); });
  frame.addEventListener("pointermove", (event) => {
    if (!from) return;
    const to = at(event);
    const values = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
    sides(form).forEach((field, index) => { field.value = (100 * values[index]).toFixed(1); });
    draw(form);
  });
  frame.addEventListener("pointerup", () => { from = null; });
  frame.addEventListener("pointercancel", () => { from = null; });
}

document.addEventListener("toggle", (event) => {
  const form = event.target.open && event.target.querySelector("form[data-crop]");
  if (form) openCrop(form);
}, true);
addEventListener("resize", () => { for (const form of document.querySelectorAll("form[data-crop]")) draw(form); });
