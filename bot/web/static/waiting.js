// Shows how far the examination of an upload has come, until it is over.
"use strict";

const words = document.getElementById("words");
const poll = setInterval(async () => {
  try {
    const response = await fetch(words.dataset.url, { headers: { Accept: "application/json" } });
    if (response.status === 404 || response.status === 410) { clearInterval(poll); location.reload(); return; }
    if (!response.ok) return;
    const state = await response.json();
    if (state.is_over) { clearInterval(poll); location.reload(); return; }
    if (words.textContent !== state.text) words.textContent = state.text;
  } catch {
    // The bot restarts, or the connection is lost: asked again.
  }
}, 2000);
