// The upload page: sends files in pieces by the tus protocol, several at a time, and goes on after lost connections.
"use strict";

const setup = JSON.parse(document.getElementById("setup").textContent);
const texts = setup.texts;
const byId = (id) => document.getElementById(id);
const list = byId("files");

const AT_ONCE = 3;
const MIN_PIECE = 512 * 1024;
const MAX_PIECE = 8 * 1024 * 1024;
const PIECE_S = 4;
const TUS = { "Tus-Resumable": "1.0.0" };
const CLUTTER = /^(\..*|thumbs\.db|desktop\.ini|__macosx|ehthumbs.*\.db|\$recycle\.bin|@eadir)$/i;

/** Every file of the list, by key: {key, path, bytes, offset, url, file, state, row}. */
const items = new Map();
let paused = false;
let ended = false;
let running = 0;
let piece = 2 * 1024 * 1024;
/** When how many bytes were sent, for the rate of the last seconds. */
let sent = [];

// -- words ------------------------------------------------------------------------------------------------------------

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));

function size(count) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (count < 1024) return unit === "B" || count >= 100 ? `${Math.round(count)} ${unit}` : `${count.toFixed(1)} ${unit}`;
    count /= 1024;
  }
  return `${count.toFixed(1)} GiB`;
}

function duration(seconds) {
  if (seconds < 60) return fill(texts.seconds, { n: Math.max(1, Math.round(seconds)) });
  if (seconds < 5400) return fill(texts.minutes, { n: Math.round(seconds / 60) });
  return fill(texts.hours, { n: (seconds / 3600).toFixed(1) });
}

// -- the list ---------------------------------------------------------------------------------------------------------

function addItem(item) {
  items.set(item.key, item);
  const row = byId("row").content.firstElementChild.cloneNode(true);
  item.row = row;
  row.querySelector(".path").textContent = item.path;
  row.querySelector(".path").title = item.path;
  row.querySelector(".size").textContent = size(item.bytes);
  row.querySelector(".kind").textContent = item.path.includes(".") ? item.path.split(".").pop().slice(0, 5) : "";
  const bar = row.querySelector("progress");
  bar.setAttribute("aria-label", item.path);
  const remove = row.querySelector("button");
  remove.setAttribute("aria-label", fill(texts.remove, { file: item.path }));
  remove.addEventListener("click", () => removeItem(item));
  list.append(row);
  draw(item);
  if (item.file) seen.observe(row);
}

function draw(item) {
  const share = item.bytes ? item.offset / item.bytes : item.state === "done" ? 1 : 0;
  const percent = Math.floor(100 * share);
  const bar = item.row.querySelector("progress");
  bar.value = share;
  bar.hidden = item.state === "done";
  const words = item.row.querySelector(".words");
  const text = item.state === "refused" ? fill(texts.refused, { reason: item.reason }) : fill(texts[item.state], { percent });
  if (words.textContent !== text) words.textContent = text;
  item.row.dataset.state = item.state;
}

let isDrawing = false;
function drawAll() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    const all = [...items.values()].filter((item) => item.state !== "refused");
    const total = all.reduce((sum, item) => sum + item.bytes, 0);
    const arrived = all.reduce((sum, item) => sum + item.offset, 0);
    const done = all.filter((item) => item.state === "done").length;
    byId("overall").hidden = !items.size;
    byId("total").value = total ? arrived / total : 0;
    const words = fill(texts.overall, { done, all: all.length, sent: size(arrived), total: size(total) });
    if (byId("total-words").textContent !== words) byId("total-words").textContent = words;
    byId("rate").textContent = rateWords(total - arrived);
    byId("finish").disabled = !all.length || done < all.length || ended;
    byId("pause").hidden = done === all.length;
    byId("pause").textContent = paused ? texts.resume : texts.pause;
  });
}

function rateWords(left) {
  const now = performance.now();
  sent = sent.filter((each) => now - each.at < 8000);
  const bytes = sent.reduce((sum, each) => sum + each.bytes, 0);
  if (paused || !left || sent.length < 2) return "";
  const rate = bytes / Math.max(0.5, (now - sent[0].at) / 1000);
  return rate > 0 ? fill(texts.rate, { rate: size(rate), time: duration(left / rate) }) : "";
}

async function removeItem(item) {
  item.state = "removed";
  item.request?.abort();
  const next = item.row.nextElementSibling ?? item.row.previousElementSibling;
  item.row.remove();
  items.delete(item.key);
  (next?.querySelector("button") ?? byId("choose")).focus();
  if (item.url) await fetch(item.url, { method: "DELETE", headers: TUS }).catch(() => {});
  drawAll();
  start();
}

// -- thumbnails: one at a time, and only of rows that are seen --------------------------------------------------------

const toDraw = [];
let isPainting = false;
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    toDraw.push(entry.target);
  }
  paint();
}, { rootMargin: "200px" });

async function paint() {
  if (isPainting) return;
  isPainting = true;
  while (toDraw.length) {
    const row = toDraw.shift();
    const item = [...items.values()].find((each) => each.row === row);
    if (!item?.file || !item.file.type.startsWith("image/")) continue;
    try {
      const image = await createImageBitmap(item.file, { resizeHeight: 96, resizeQuality: "medium" });
      const canvas = row.querySelector("canvas");
      const side = Math.min(image.width, image.height);
      canvas.getContext("2d").drawImage(
        image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
      image.close();
      row.classList.add("drawn");
    } catch {
      // The browser does not know the format; the name's ending is shown.
    }
  }
  isPainting = false;
}

// -- which files ------------------------------------------------------------------------------------------------------

const keyOf = (path, file) => `${path}|${file.size}|${file.lastModified}`;

function choose(found) {
  const wanted = found.filter(({ path }) => !path.split("/").some((part) => CLUTTER.test(part)));
  const skipped = found.length - wanted.length;
  const fresh = wanted.filter(({ path, file }) => items.get(keyOf(path, file))?.file == null);
  const others = fresh.filter(({ path, file }) => !items.has(keyOf(path, file)));
  const all = [...items.values()].filter((item) => item.state !== "refused");
  const bytes = others.reduce((sum, { file }) => sum + file.size, 0) + all.reduce((sum, item) => sum + item.bytes, 0);
  let problem = "";
  if (all.length + others.length > setup.max_files) {
    problem = fill(texts.too_many, { files: all.length + others.length, most: setup.max_files });
  } else if (bytes > setup.max_bytes) {
    problem = fill(texts.too_large, { size: size(bytes), most: size(setup.max_bytes) });
  }
  const note = skipped === 1 ? texts.skipped_one : skipped ? texts.skipped_many : "";
  say(problem || fill(note, { n: skipped }), Boolean(problem));
  if (problem) return;
  for (const { path, file } of fresh) {
    const key = keyOf(path, file);
    const known = items.get(key);
    if (known) {
      known.file = file;
      if (known.state !== "done") known.state = "waiting";
      seen.observe(known.row);
      draw(known);
    } else {
      addItem({ key, path, file, bytes: file.size, offset: 0, url: "", state: "waiting" });
    }
  }
  drawAll();
  start();
}

function say(text, isProblem) {
  const note = byId("note");
  note.textContent = text;
  note.hidden = !text;
  note.classList.toggle("bad", isProblem);
}

async function filesOf(entry, above) {
  const path = above ? `${above}/${entry.name}` : entry.name;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ path, file }];
  }
  const reader = entry.createReader();
  const found = [];
  // A reader gives a hundred entries at a time.
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const each of some) found.push(...(await filesOf(each, path)));
  }
}

async function dropped(transfer) {
  const entries = [...transfer.items].map((each) => each.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ path: file.name, file }));
  const found = [];
  for (const entry of entries) found.push(...(await filesOf(entry, "")));
  return found;
}

const drop = byId("drop");
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => drop.classList.remove("over"));
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  choose(await dropped(event.dataTransfer));
});
for (const [button, input] of [["choose", "pick-files"], ["choose-folder", "pick-folder"]]) {
  byId(button).addEventListener("click", () => byId(input).click());
  byId(input).addEventListener("change", ({ target }) => {
    choose([...target.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
    target.value = "";
  });
}
if (!("webkitdirectory" in byId("pick-folder"))) byId("choose-folder").hidden = true;

// -- sending ----------------------------------------------------------------------------------------------------------

function start() {
  while (!paused && !ended && running < AT_ONCE) {
    const item = [...items.values()].find((each) => each.file && each.state === "waiting");
    if (!item) return;
    item.state = "sending";
    running += 1;
    send(item).finally(() => { running -= 1; drawAll(); start(); });
  }
}

/** Send a file to its end; a lost connection is tried again for as long as it takes. */
async function send(item) {
  let tries = 0;
  while (item.state === "sending" || item.state === "retry" || item.state === "full") {
    if (paused) { set(item, "waiting"); return; }
    try {
      if (!item.url) await create(item);
      else if (tries) await askOffset(item);
      set(item, "sending");
      while (item.offset < item.bytes && item.state === "sending") {
        if (paused) { set(item, "waiting"); return; }
        await sendPiece(item);
        tries = 0;
      }
      if (item.state === "sending") set(item, "done");
    } catch (error) {
      if (item.state === "removed" || !(await canGoOn(item, error))) return;
      tries += 1;
      await pauseOf(Math.min(15, 0.5 * 2 ** Math.min(tries, 6)) * (0.5 + Math.random() / 2));
    }
  }
}

class Refused extends Error {
  constructor(status, text) { super(text); this.status = status; }
}

/** Whether it is worth another try after an error; the row says why if not. */
async function canGoOn(item, error) {
  if (!(error instanceof Refused)) { set(item, paused ? "waiting" : "retry"); return !paused; }
  if (error.status === 410) {
    ended = true;
    say(texts.ended, true);
    set(item, "waiting");
    return false;
  }
  // Another offset, another sender, a damaged piece, too often, no disk, no server: all of it passes.
  if (error.status === 404) item.url = "";
  if (error.status === 507) { set(item, "full"); return true; }
  if ([404, 408, 409, 423, 429, 460].includes(error.status) || error.status >= 500) { set(item, "retry"); return true; }
  item.reason = error.message;
  set(item, "refused");
  return false;
}

function set(item, state) {
  if (item.state === "removed") return;
  item.state = state;
  draw(item);
  drawAll();
}

const pauseOf = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

const base64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
const encoded = (text) => base64(new TextEncoder().encode(text));

async function create(item) {
  const metadata = `relativePath ${encoded(item.path)},key ${encoded(item.key)}`;
  const response = await fetch(setup.files_url, {
    method: "POST",
    headers: { ...TUS, "Upload-Length": String(item.bytes), "Upload-Metadata": metadata },
  });
  if (response.status !== 201) throw new Refused(response.status, (await response.text()).trim());
  item.url = response.headers.get("Location");
  item.offset = Number(response.headers.get("Upload-Offset") ?? 0);
}

async function askOffset(item) {
  const response = await fetch(item.url, { method: "HEAD", headers: TUS });
  if (response.status !== 200) throw new Refused(response.status, "");
  item.offset = Number(response.headers.get("Upload-Offset"));
}

/** Send the next piece of a file; its size follows the speed of the line, so that little is lost with a connection. */
async function sendPiece(item) {
  const begin = item.offset;
  const bytes = await item.file.slice(begin, Math.min(begin + piece, item.bytes)).arrayBuffer();
  const headers = { ...TUS, "Upload-Offset": String(begin), "Content-Type": "application/offset+octet-stream" };
  // Browsers have it on https only.
  if (crypto.subtle) {
    headers["Upload-Checksum"] = `sha256 ${base64(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)))}`;
  }
  const began = performance.now();
  let before = 0;
  const answer = await new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    item.request = request;
    request.open("PATCH", item.url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.timeout = 120000;
    request.upload.addEventListener("progress", ({ loaded }) => {
      sent.push({ at: performance.now(), bytes: loaded - before });
      before = loaded;
      item.offset = Math.min(begin + loaded, item.bytes);
      draw(item);
      drawAll();
    });
    request.addEventListener("load", () => resolve(request));
    for (const name of ["error", "abort", "timeout"]) {
      request.addEventListener(name, () => { item.offset = begin; reject(new Error(name)); });
    }
    request.send(bytes);
  });
  item.request = null;
  if (answer.status !== 204) {
    item.offset = begin;
    throw new Refused(answer.status, answer.responseText.trim());
  }
  item.offset = Number(answer.getResponseHeader("Upload-Offset"));
  const seconds = Math.max(0.05, (performance.now() - began) / 1000);
  piece = Math.round(Math.min(MAX_PIECE, Math.max(MIN_PIECE, (bytes.byteLength / seconds) * PIECE_S)));
}

// -- pause, finish, and leaving ---------------------------------------------------------------------------------------

byId("pause").addEventListener("click", () => {
  paused = !paused;
  for (const item of items.values()) {
    if (paused && ["sending", "retry", "full"].includes(item.state)) item.request?.abort();
    if (paused && item.state === "waiting") draw(Object.assign(item, { state: "paused" }));
    if (!paused && item.state === "paused") draw(Object.assign(item, { state: "waiting" }));
  }
  drawAll();
  start();
});

let isLeaving = false;
for (const form of document.forms) form.addEventListener("submit", () => { isLeaving = true; });
addEventListener("beforeunload", (event) => {
  if (!isLeaving && running) { event.preventDefault(); event.returnValue = texts.leave; }
});
addEventListener("online", () => start());

for (const known of setup.files) {
  const key = known.key || known.id;
  const state = known.offset === known.bytes ? "done" : "partial";
  addItem({ ...known, key, url: `${setup.files_url}/${known.id}`, state });
}
drawAll();
