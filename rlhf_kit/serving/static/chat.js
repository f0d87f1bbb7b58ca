// A conversation with one to four models beside each other. It is a tree: below what was said stand the answers of each
// model, one for each time it was asked, and what was said next, which follows one answer of each, or the one answer that
// leads. Nothing is removed: what is edited or asked again stands beside what was there before.
"use strict";

const root = document.getElementById("chat");
const [texts, names, shownNames, limits] = ["texts", "names", "shown", "limits"].map((name) => JSON.parse(root.dataset[name]));
const say = (name) => texts[name][document.documentElement.lang === "zh-Hant" ? 1 : 0];
const input = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_k", "max_tokens", "seed"];
const KEPT = "rlhf_kit chat";

const state = {
  models: names.slice(0, 2),
  settings: { system: "", temperature: 1, top_k: 0, max_tokens: 128, seed: 0 },
  tree: { next: [], last: 0, answers: {} }, // `last`: of what was said next, which one is looked at
  fresh: false, // a new conversation, of which nothing was said yet
  draft: "",
  who: root.dataset.who,
};
const going = new Map(); // answers that come just now, with what stops each
const places = new Map(); // answers that are shown, with their cards
const panels = new WeakMap();

// --- the tree ---

const current = (turn, model) => turn.answers[model]?.list[turn.answers[model].at];
const follows = (turn, before) => turn.led === before.lead && Object.entries(turn.after).every(([model, at]) => before.answers[model]?.at === at);

// What is said next follows the answers that are looked at, or of them the one of the model that leads.
function placeBehind({ answers, lead }) {
  const followed = Object.entries(answers).filter(([model]) => [undefined, model].includes(lead));
  return { led: lead, after: Object.fromEntries(followed.map(([model, { at }]) => [model, at])) };
}

// What is looked at: of each turn, the one before it and all that stand beside it.
function path() {
  const found = [];
  for (let node = state.tree; !(state.fresh && node === state.tree); node = found.at(-1).turn) {
    const beside = node.next.filter((turn) => follows(turn, node));
    if (!beside.length) break;
    const turn = beside.includes(node.next[node.last]) ? node.next[node.last] : beside.at(-1);
    found.push({ turn, before: node, beside });
  }
  return found;
}

// The turns that a model is to answer: those before without its answer are left out. What an answer that leads was to
// answer, all have heard.
function historyOf(model, turn) {
  const system = state.settings.system.trim() ? [{ role: "system", content: state.settings.system }] : [];
  let turns = [];
  for (const { turn: one } of path()) {
    if (one === turn) break;
    const answer = current(one, one.lead ?? model);
    if (one.lead) turns = answer.turns.slice(0, -1).filter(({ role }) => role !== "system");
    if (answer?.text) turns.push({ role: "user", content: one.text }, { role: "assistant", content: answer.text });
  }
  return [...system, ...turns, { role: "user", content: turn.text }];
}

function add(before, place, text) {
  before.next.push({ text, ...place, answers: {}, next: [], last: 0 });
  before.last = before.next.length - 1;
  state.fresh = false;
  for (const model of state.models) ask(model, before.next[before.last]);
  draw();
}

function send() {
  const text = input("say").value;
  if (going.size) return page.say(say("wait"));
  if (!state.models.length) return page.say(say("choose"));
  if (!text.trim()) return page.say(say("write"));
  const before = path().at(-1)?.turn ?? state.tree;
  input("say").value = "";
  page.say("");
  add(before, placeBehind(before), text);
  scrollTo(0, document.body.scrollHeight);
}

// --- an answer, as it comes ---

async function ask(model, turn) {
  const slot = (turn.answers[model] ??= { list: [], at: 0 });
  const { temperature, top_k, max_tokens, seed } = state.settings;
  const answer = { model, text: "", shown: "", turns: historyOf(model, turn), temperature, top_k, max_tokens, seed: seed + slot.list.length };
  slot.at = slot.list.push(answer) - 1;
  const stopper = new AbortController();
  going.set(answer, stopper);
  try {
    const { turns } = answer;
    const response = await fetch("/chat/answers", request({ model, turns, temperature, top_k, max_tokens, seed: answer.seed }, stopper.signal));
    if (!response.ok) Object.assign(answer, await faultOf(response));
    else await read(response, answer);
  } catch (error) {
    answer.finish = error.name === "AbortError" ? "stopped" : undefined;
  }
  if (!answer.finish && !answer.error) answer.error = "failed";
  going.delete(answer);
  input("heard").textContent = `${shownNames[names.indexOf(model)]}: ${(answer.error ? say(answer.error) : answer.shown || say("empty")).slice(0, 300)}`;
  draw();
}

async function read(response, answer) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const lines = (rest + piece.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const { text = "", shown = text, ...more } = JSON.parse(line);
      answer.text += text;
      answer.shown += shown;
      Object.assign(answer, more);
    }
    write(answer);
  }
}

// Shows how far an answer has come; who reads at the end of the page stays there.
function write(answer) {
  const card = places.get(answer);
  if (!card) return;
  const atEnd = innerHeight + scrollY >= document.body.scrollHeight - 40;
  card.querySelector(".text").textContent = answer.shown;
  card.querySelector(".waiting").hidden = Boolean(answer.shown);
  card.querySelector(".tag").hidden = answer.chats !== false;
  if (atEnd) scrollTo(0, document.body.scrollHeight);
}

function stop() {
  for (const stopper of going.values()) stopper.abort();
}

const request = (value, signal) => ({
  method: "POST",
  headers: { "content-type": "application/json", "x-csrf-token": page.token },
  body: JSON.stringify(value),
  signal,
});

// What a refusal says: a name of our texts, or a text.
async function faultOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text);
  } catch {
    return { error: "failed", detail: text.trim().slice(0, 300) };
  }
}

// --- what goes to the store ---

async function post(address, value) {
  const response = await fetch(address, request(value));
  if (response.ok) return response.json();
  const { error, detail } = await faultOf(response);
  if (error === "name" && (await signIn())) return post(address, value);
  throw new Error(detail ?? say(error));
}

async function keeping(act) {
  try {
    await act();
  } catch (error) {
    page.say(`${say("not kept")} ${error.message}`);
  }
  draw();
}

// The same thumb again takes it back.
const thumb = (answer, label) => keeping(async () => {
  const { assignment } = await post("/chat/tasks", { kind: "thumbs", turns: answer.turns, proofs: [answer.proof] });
  const uid = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const isBack = answer.label === label;
  const decision = isBack ? { kind: "skipped", content: { reason: "taken back" } } : { kind: "thumb", content: { label } };
  await post("/decisions", { uid, assignment, seconds: 0, ...decision });
  answer.label = isBack ? undefined : label;
  page.say(say(isBack ? "taken back" : "kept"));
});

const rank = (answers) => keeping(async () => {
  const proofs = answers.map((answer) => answer.proof);
  const { assignment } = await post("/chat/tasks", { kind: "ranking", turns: answers[0].turns, proofs });
  location.assign(`/rank/${assignment}`);
});

// A name is asked for on this page; its session has another token, and the head of the page tells who is there.
function signIn() {
  const dialog = page.dialog("signing");
  const fault = input("signing-fault");
  fault.hidden = true;
  return new Promise((done) => {
    const finish = (is) => {
      dialog.onclose = null;
      dialog.close();
      done(is);
    };
    dialog.onclose = () => done(false);
    dialog.querySelector(".cancel").onclick = () => finish(false);
    dialog.querySelector("form").onsubmit = async (event) => {
      event.preventDefault();
      const body = new URLSearchParams({ csrf: page.token, name: input("signing-name").value });
      const response = await fetch("/sign-in", { method: "POST", body, redirect: "manual" });
      const parsed = new DOMParser().parseFromString(await (response.type === "opaqueredirect" ? await fetch("/chat") : response).text(), "text/html");
      page.token = parsed.querySelector('meta[name="csrf"]')?.content ?? page.token;
      state.who = parsed.getElementById("chat")?.dataset.who ?? "";
      if (state.who) {
        document.querySelector("header").replaceWith(document.importNode(parsed.querySelector("header"), true));
        return finish(true);
      }
      fault.textContent = parsed.querySelector(".warning")?.textContent ?? say("failed");
      fault.hidden = false;
    };
  });
}

// --- what is shown ---

function el(tag, options = {}, ...children) {
  const { key, label, pressed, ...rest } = options;
  const made = Object.assign(document.createElement(tag), rest);
  if (key) made.dataset.key = key;
  if (label) made.title = label;
  if (label) made.setAttribute("aria-label", label);
  if (pressed !== undefined) made.setAttribute("aria-pressed", pressed);
  made.append(...children.filter(Boolean));
  return made;
}

const button = (text, onclick, options = {}) => el("button", { type: "button", className: "small", textContent: text, onclick, ...options });

// ‹ 2/3 ›
function switcher(at, count, key, go) {
  if (count < 2) return null;
  const step = (by, sign, label) => button(sign, () => { go(at + by); draw(); }, { key: `${key} ${sign}`, label: say(label), disabled: at + by < 0 || at + by >= count });
  return el("span", { className: "switch" }, step(-1, "‹", "previous"), el("span", { textContent: `${at + 1}/${count}` }), step(1, "›", "next"));
}

function drawSaid({ turn, before, beside }, key) {
  const said = el("div", { className: "said", role: "group", ariaLabel: say("you") });
  const show = () => said.replaceChildren(
    button("✎", edit, { key: `${key} edit`, label: say("edit"), disabled: going.size > 0 }),
    switcher(beside.indexOf(turn), beside.length, key, (at) => { before.last = before.next.indexOf(beside[at]); }) ?? "",
    el("div", { className: "text", dir: "auto", textContent: turn.text }),
  );
  const edit = () => {
    const area = el("textarea", { value: turn.text, rows: 3, maxLength: limits.characters, dir: "auto", label: say("edit") });
    const form = el("form", { onsubmit: (event) => { event.preventDefault(); if (area.value.trim()) add(before, { led: turn.led, after: turn.after }, area.value); } }, area,
      el("p", {}, button(say("cancel"), draw), el("button", { className: "primary", textContent: say("branch") })));
    area.onkeydown = (event) => {
      if (event.key === "Escape") draw();
      submitted(event, form);
    };
    said.replaceChildren(form);
    area.focus();
  };
  show();
  return said;
}

function drawAnswer(turn, model, key) {
  const name = shownNames[names.indexOf(model)];
  const slot = turn.answers[model];
  const answer = current(turn, model);
  const head = el("div", { className: "head" }, el("strong", {}, el("bdi", { textContent: name })));
  const card = el("section", { className: "card", label: name }, head);
  card.removeAttribute("title");
  if (!answer) {
    card.append(button(say("ask"), () => { ask(model, turn); draw(); }, { key: `${key} ask`, disabled: going.size > 0 }));
    return card;
  }
  const isGoing = going.has(answer);
  card.classList.toggle("going", isGoing);
  head.append(el("span", { className: "tag", textContent: say("continues"), hidden: answer.chats !== false }),
    switcher(slot.at, slot.list.length, key, (at) => { slot.at = at; }) ?? "");
  card.append(el("div", { className: "text", dir: "auto", textContent: answer.shown }),
    el("p", { className: "waiting soft", textContent: say("waiting"), hidden: !isGoing || Boolean(answer.shown) }));
  const note = noteOf(answer);
  if (note) card.append(el("p", { className: "note", textContent: note }));
  const how = `T ${answer.temperature} · top-k ${answer.top_k} · ${say("seed")} ${answer.seed}${answer.tokens ? ` · ${answer.tokens} ${say("tokens")}` : ""}`;
  const act = isGoing
    ? [button("■", () => going.get(answer)?.abort(), { key: `${key} stop`, label: `${say("stop")}: ${name}` })]
    : [
      ...(answer.proof ? [[true, "good"], [false, "bad"]].map(([label, text]) =>
        button(say(text), () => thumb(answer, label), { key: `${key} ${text}`, label: `${say(text)}: ${name}`, pressed: answer.label === label })) : []),
      button("↻", () => { ask(model, turn); draw(); }, { key: `${key} again`, label: `${say("again")}: ${name}`, disabled: going.size > 0 }),
      leadButton(turn, model, answer, `${key} lead`),
    ];
  card.append(el("div", { className: "foot" }, el("span", { className: "how soft", textContent: how }), ...act.filter(Boolean)));
  if (!isGoing && answer.text && answer.chats !== false) card.append(panelOf(answer).element);
  places.set(answer, card);
  return card;
}

// The same again: each goes on from its own answer.
function leadButton(turn, model, answer, key) {
  if (state.models.length < 2 || !answer.text.trim()) return null;
  const leads = turn.lead === model;
  const choose = () => {
    turn.lead = leads ? undefined : model;
    page.say(say(leads ? "own" : "led"));
    draw();
  };
  return button(say("lead"), choose, { key, label: `${say("lead")}: ${shownNames[names.indexOf(model)]}`, pressed: leads, disabled: going.size > 0 });
}

// What PPO did to an answer stays open while the page is drawn anew.
function panelOf(answer) {
  if (!panels.has(answer)) {
    const { model, turns } = answer;
    const sent = () => ({ model, turns, answer: answer.text, ended: answer.finish === "stop" });
    panels.set(answer, new page.Panel(names, sent, { shown: shownNames }));
  }
  return panels.get(answer);
}

function noteOf(answer) {
  if (going.has(answer)) return "";
  if (answer.error) return [say(answer.error), answer.detail].filter(Boolean).join(" ");
  if (answer.finish !== "stop") return say(answer.finish);
  return answer.text.trim() ? "" : say("empty");
}

// All answers to the same turns can be ranked, those of a model that was asked again too.
function drawRank(turn, key) {
  const shown = state.models.map((model) => current(turn, model)).filter((answer) => answer?.proof);
  const all = state.models.flatMap((model) => turn.answers[model]?.list ?? []).filter((answer) => answer.proof);
  const turnsOf = (answer) => JSON.stringify(answer.turns);
  const alike = all.filter((answer) => shown.length && turnsOf(answer) === turnsOf(shown[0])).slice(0, 12);
  if (going.size) return null;
  if (alike.length > 1) return el("p", { className: "choice" }, button(`${say("rank")} (${alike.length})`, () => rank(alike), { key: `${key} rank` }));
  return shown.length > 1 ? el("p", { className: "choice soft", textContent: say("unlike") }) : null;
}

function draw() {
  const key = document.activeElement?.dataset?.key;
  places.clear();
  const turns = path().map((one, number) => el("article", {}, drawSaid(one, `${number}`),
    el("div", { className: "beside" }, ...state.models.map((model) => drawAnswer(one.turn, model, `${number} ${names.indexOf(model)}`))),
    drawRank(one.turn, `${number}`)));
  document.getElementById("turns").replaceChildren(...(turns.length ? turns : [el("p", { className: "soft", textContent: say("begin") })]));
  if (key) document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
  input("stop").hidden = !going.size;
  input("send").hidden = going.size > 0;
  const { temperature, top_k, max_tokens, seed, system } = state.settings;
  input("set").textContent = `T ${temperature} · top-k ${top_k} · ≤ ${max_tokens} ${say("tokens")} · ${say("seed")} ${seed}${system.trim() ? ` · ${say("system")}` : ""}`;
  input("shown-temperature").textContent = temperature;
  keep();
}

// --- the browser keeps it while the tab is open ---

function keep() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(state));
  } catch {
    // too large, or not allowed: the page works on
  }
}

function restore() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  if (!kept) return;
  const isOther = kept.who && kept.who !== state.who; // whose thumbs they are not
  Object.assign(state, kept, { who: state.who, models: kept.models.filter((model) => names.includes(model)) });
  const walk = (node) => {
    for (const { list } of Object.values(node.answers)) {
      for (const answer of list) {
        if (!answer.finish && !answer.error) answer.finish = "stopped"; // the page was left
        if (isOther) delete answer.label;
      }
    }
    node.next.forEach(walk);
  };
  walk(state.tree);
}

// --- what is done ---

// Enter sends; not while an input method composes a character.
function submitted(event, form) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  form.requestSubmit();
}

try {
  restore();
} catch {
  sessionStorage.removeItem(KEPT);
}
const boxes = [...document.querySelectorAll("#models input")];
for (const box of boxes) box.checked = state.models.includes(names[box.value]);
input("models").addEventListener("change", (event) => {
  const chosen = boxes.filter((box) => box.checked);
  if (chosen.length > limits.models) event.target.checked = false;
  page.say(chosen.length > limits.models || !chosen.length ? say("choose") : "");
  state.models = boxes.filter((box) => box.checked).map((box) => names[box.value]);
  draw();
});
for (const name of ["system", ...NUMBERS]) {
  input(name).value = state.settings[name];
  input(name).addEventListener(name === "system" || name === "temperature" ? "input" : "change", () => {
    const field = input(name);
    if (name === "system") state.settings.system = field.value;
    else if (field.value !== "" && field.checkValidity()) state.settings[name] = Number(field.value);
    else field.value = state.settings[name];
    draw();
  });
}
input("say").value = state.draft;
input("say").addEventListener("input", () => { state.draft = input("say").value; keep(); });
input("say").addEventListener("keydown", (event) => submitted(event, input("composer")));
input("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); state.draft = input("say").value; keep(); });
input("stop").addEventListener("click", () => { stop(); input("say").focus(); });
input("new").addEventListener("click", () => { if (!going.size) { state.fresh = true; draw(); input("say").focus(); } });
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop(); });
draw();
