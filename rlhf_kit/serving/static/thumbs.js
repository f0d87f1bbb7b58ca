// One answer, good or bad.
"use strict";

const card = page.answers.querySelector(".card");
const was = JSON.parse(page.answers.dataset.content);
const buttons = { true: document.getElementById("good"), false: document.getElementById("bad") };

page.restore([card], was);
page.shared();
if ("label" in was) buttons[was.label].setAttribute("aria-pressed", "true");

const give = (label) => page.send("thumb", page.remarks([card], { label }));
buttons.true.addEventListener("click", () => give(true));
buttons.false.addEventListener("click", () => give(false));
document.getElementById("undo").addEventListener("click", () => page.previous());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || page.typing(event.target)) return;
  if (document.querySelector("dialog[open]")) return;
  const keys = {
    y: () => give(true),
    ArrowUp: () => give(true),
    n: () => give(false),
    ArrowDown: () => give(false),
    s: () => page.dialog("skipping"),
    u: () => page.previous(),
    "?": () => page.dialog("help"),
  };
  if (event.key in keys) {
    event.preventDefault();
    keys[event.key]();
  }
});
