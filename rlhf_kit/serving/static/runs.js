// Follows a run, or all of them: what the server drew anew takes the place of what was shown.
"use strict";

const away = document.getElementById("away");
const shown = {};
let seen = "";
let next;

async function follow() {
  clearTimeout(next);
  let pause = 2;
  try {
    const response = await fetch(`${location.pathname}?seen=${encodeURIComponent(seen)}`);
    const { version, parts, pause: asked } = await response.json();
    for (const [name, html] of Object.entries(parts)) {
      if (shown[name] === html) continue;
      document.getElementById(name).innerHTML = html; // escaped by the server
      shown[name] = html;
    }
    [seen, pause, away.hidden] = [version, asked, true];
  } catch {
    away.hidden = false; // the server, or the run
  }
  next = setTimeout(look, pause * 1000);
}

function look() {
  if (document.visibilityState === "visible") follow();
}

document.addEventListener("visibilitychange", look);
follow();
