// A list of answers put in order. The order is the order of the cards; `tied` joins a card to the one above it.
"use strict";

const list = page.answers;
const cards = () => [...list.children];
const presented = cards().map((card) => card.dataset.answer);
const was = JSON.parse(list.dataset.content);
const undone = [];
let touched = false;

const rating = (card) => Number(card.querySelector(".rating input:checked")?.value ?? 0);
const name = (card) => card.querySelector(".name").textContent;

function ranks() {
  const of = {};
  let rank = 0;
  for (const card of cards()) {
    if (!card.classList.contains("tied")) rank += 1;
    of[card.dataset.answer] = rank;
  }
  return of;
}

// --- what is shown of the order ---

function draw() {
  cards()[0].classList.remove("tied");
  const of = ranks();
  cards().forEach((card, at) => {
    card.querySelector(".rank").textContent = of[card.dataset.answer];
    card.querySelector(".tie").setAttribute("aria-pressed", card.classList.contains("tied"));
    card.querySelector(".tie").disabled = at === 0;
    card.querySelector(".up").disabled = at === 0;
    card.querySelector(".down").disabled = at === list.children.length - 1;
  });
}

function announce(card) {
  page.say(`${name(card)}: ${ranks()[card.dataset.answer]} / ${list.children.length}${card.classList.contains("tied") ? " =" : ""}`);
}

// --- changes, each of which can be undone ---

const state = () => ({
  order: cards().map((card) => [card.dataset.answer, card.classList.contains("tied")]),
  ratings: Object.fromEntries(cards().map((card) => [card.dataset.answer, rating(card)])),
  touched,
});

function restore(to) {
  const card = focused(); // a card that is moved loses the focus
  for (const [answer, tied] of to.order) {
    const card = list.querySelector(`[data-answer="${answer}"]`);
    card.classList.toggle("tied", tied);
    list.append(card);
  }
  for (const [answer, value] of Object.entries(to.ratings)) rate(list.querySelector(`[data-answer="${answer}"]`), value);
  touched = to.touched;
  draw();
  card?.focus();
}

function change(act) {
  const before = state();
  const card = focused();
  act();
  card?.focus();
  if (JSON.stringify(before) !== JSON.stringify(state())) undone.push(before);
  draw();
}

function rate(card, value) {
  for (const input of card.querySelectorAll(".rating input")) input.checked = Number(input.value) === value;
}

function move(card, to) {
  const others = cards().filter((other) => other !== card);
  const at = Math.max(0, Math.min(to, others.length));
  const from = cards().indexOf(card);
  if (at === from) return;
  change(() => {
    // what was tied to a card that leaves goes up to where that card was
    const next = cards()[from + 1];
    if (next?.classList.contains("tied") && !card.classList.contains("tied")) next.classList.remove("tied");
    card.classList.remove("tied");
    list.insertBefore(card, others[at] ?? null);
    if (at === 0) others[0].classList.remove("tied");
    touched = true;
  });
  card.focus();
  announce(card);
}

function tie(card) {
  if (cards().indexOf(card) < 1) return;
  change(() => {
    card.classList.toggle("tied");
    touched = true;
  });
  announce(card);
}

function byRating() {
  if (!cards().some(rating)) return;
  change(() => {
    const sorted = cards().sort((one, other) => rating(other) - rating(one));
    sorted.forEach((card, at) => {
      card.classList.toggle("tied", at > 0 && rating(card) === rating(sorted[at - 1]) && rating(card) > 0);
      list.append(card);
    });
    touched = true;
  });
}

function undo() {
  if (undone.length) restore(undone.pop());
  else page.previous();
}

// --- by pointer: mouse, pen, finger ---

for (const card of cards()) {
  const grip = card.querySelector(".grip");
  grip.addEventListener("pointerdown", (down) => {
    if (down.button !== 0) return;
    down.preventDefault();
    grip.setPointerCapture(down.pointerId);
    card.classList.add("dragged");
    const from = cards().indexOf(card);
    let to = from;
    const follow = (event) => {
      card.style.transform = `translateY(${event.clientY - down.clientY}px)`;
      const middles = cards().filter((other) => other !== card).map((other) => {
        const box = other.getBoundingClientRect();
        return box.top + box.height / 2;
      });
      const box = card.getBoundingClientRect();
      const edge = event.clientY < down.clientY ? box.top : box.bottom;
      to = middles.filter((middle) => (event.clientY < down.clientY ? middle < edge : middle <= edge)).length;
      if (event.clientY > innerHeight - 60) scrollBy(0, 12);
      if (event.clientY < 60) scrollBy(0, -12);
    };
    const stop = (event) => {
      grip.removeEventListener("pointermove", follow);
      grip.removeEventListener("pointerup", stop);
      grip.removeEventListener("pointercancel", stop);
      card.classList.remove("dragged");
      card.style.transform = "";
      if (event.type === "pointerup") move(card, to);
    };
    grip.addEventListener("pointermove", follow);
    grip.addEventListener("pointerup", stop);
    grip.addEventListener("pointercancel", stop);
  });
  card.querySelector(".up").addEventListener("click", () => move(card, cards().indexOf(card) - 1));
  card.querySelector(".down").addEventListener("click", () => move(card, cards().indexOf(card) + 1));
  card.querySelector(".tie").addEventListener("click", () => tie(card));
  let rated = 0;
  card.querySelector(".rating").addEventListener("pointerdown", () => { rated = rating(card); });
  card.querySelector(".rating").addEventListener("change", () => {
    const now = rating(card);
    rate(card, rated);
    change(() => rate(card, now));
    rated = now;
  });
}

// --- review and submit ---

function contradictions() {
  const of = ranks();
  const pairs = [];
  const all = cards();
  for (const one of all) {
    for (const other of all) {
      if (rating(one) && rating(other) && rating(one) > rating(other) && of[one.dataset.answer] > of[other.dataset.answer]) {
        pairs.push(`${name(one)} (${rating(one)}) – ${name(other)} (${rating(other)})`);
      }
    }
  }
  return pairs;
}

function review() {
  const summary = document.getElementById("summary");
  summary.replaceChildren(...cards().map((card) => {
    const line = document.createElement("li");
    line.value = ranks()[card.dataset.answer];
    line.dir = "auto";
    line.textContent = `${name(card)}${rating(card) ? ` (${rating(card)})` : ""}: ${card.querySelector(".text").textContent.slice(0, 200)}`;
    return line;
  }));
  document.getElementById("untouched").hidden = touched || Number(list.dataset.again) === 1;
  const pairs = contradictions();
  document.getElementById("contradiction").hidden = pairs.length === 0;
  document.querySelector("#contradiction span").textContent = pairs.join("; ");
  explain();
  page.dialog("reviewing");
  document.getElementById("submit").focus();
}

function explain() {
  const box = document.getElementById("explanation");
  if (!box) return;
  const gold = JSON.parse(list.dataset.gold);
  const names = cards().sort((one, other) => gold[one.dataset.answer] - gold[other.dataset.answer]).map(name);
  box.querySelector(".order").textContent = names.join(" › ");
  box.hidden = false;
}

function content(kind) {
  const ratings = Object.fromEntries(cards().filter(rating).map((card) => [card.dataset.answer, rating(card)]));
  const made = kind === "ranked" ? { ranks: ranks() } : {};
  if (Object.keys(ratings).length) made.ratings = ratings;
  return page.remarks(cards(), made);
}

// --- keys ---

const focused = () => document.activeElement?.closest?.(".card");

function step(by) {
  const all = cards();
  const at = all.indexOf(focused());
  all[at < 0 ? 0 : Math.max(0, Math.min(all.length - 1, at + by))].focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || page.typing(event.target)) return;
  const open = document.querySelector("dialog[open]");
  if (open) return;
  const card = focused();
  if (event.altKey) {
    if (card && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      event.preventDefault();
      move(card, cards().indexOf(card) + (event.key === "ArrowUp" ? -1 : 1));
    }
    return;
  }
  if (event.key === "Enter" && event.target.closest("button, summary, a")) return;
  const keys = {
    j: () => step(1),
    k: () => step(-1),
    "=": () => card && tie(card),
    o: byRating,
    n: () => page.send("unrankable", content("unrankable")),
    s: () => page.dialog("skipping"),
    u: undo,
    Enter: review,
    "?": () => page.dialog("help"),
  };
  if (/^[1-7]$/.test(event.key) && card) {
    event.preventDefault();
    change(() => rate(card, Number(event.key)));
  } else if (event.key in keys) {
    event.preventDefault();
    keys[event.key]();
  }
});

document.getElementById("review").addEventListener("click", review);
document.getElementById("submit").addEventListener("click", () => page.send("ranked", content("ranked")));
document.getElementById("by-rating").addEventListener("click", byRating);
document.getElementById("undo").addEventListener("click", undo);
document.getElementById("unrankable").addEventListener("click", () => page.send("unrankable", content("unrankable")));

// --- a task that was decided before is shown as it was decided ---

if (was.ranks) {
  const sorted = cards().sort((one, other) => was.ranks[one.dataset.answer] - was.ranks[other.dataset.answer]);
  sorted.forEach((card, at) => {
    card.classList.toggle("tied", at > 0 && was.ranks[card.dataset.answer] === was.ranks[sorted[at - 1].dataset.answer]);
    list.append(card);
  });
}
for (const card of cards()) rate(card, (was.ratings ?? {})[card.dataset.answer] ?? 0);
page.restore(cards(), was);
page.shared();
draw();
cards()[0].focus();
