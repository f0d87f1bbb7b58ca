// What may come next. The state is here: a text, and for each column its model and the pieces chosen behind the text.
"use strict";

const root = document.getElementById("next");
const models = JSON.parse(root.dataset.models);
const words = JSON.parse(root.dataset.words);
const text = document.getElementById("text");
const MOST = 4;
const columns = [];

const { make, visible, percent, ask } = page;
const number = (id) => Number(document.getElementById(id).value);
const settings = () => ({ temperature: number("temperature"), top_k: number("top_k"), top_p: number("top_p") });
const later = (wait, what) => {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(what, wait);
  };
};

class Column {
  constructor(model, template) {
    Object.assign(this, { path: [], at: 0, seen: null, asked: 0, writing: null });
    this.model = make("select", { ariaLabel: words.model });
    this.model.append(...models.map((name) => make("option", { textContent: name, value: name })));
    this.model.value = model;
    this.template = make("input", { type: "checkbox", checked: template });
    this.written = make("div", { className: "written", dir: "auto" });
    this.bars = make("ol", { className: "bars" });
    this.figures = make("p", { className: "soft figures" });
    this.mistake = make("p", { className: "mistake" });
    this.mistake.setAttribute("role", "alert");
    const button = (name, run) => make("button", { type: "button", textContent: words[name], onclick: run });
    const remove = make("button", { type: "button", textContent: "×", ariaLabel: words.remove, onclick: () => this.remove() });
    const writing = { "write 1": 1, "write 10": 10, "write all": 512 };
    this.stop = button("stop", () => this.writing?.abort());
    this.stop.hidden = true;
    this.buttons = Object.entries(writing).map(([name, count]) => button(name, () => this.write(count)));
    this.panel = new page.Panel(models, (typed) => this.answer(typed), { types: true });
    this.element = make(
      "article",
      { className: "card column" },
      make("div", { className: "top" }, this.model, make("label", {}, this.template, words.template), remove),
      this.written,
      this.mistake,
      this.bars,
      this.figures,
      make("div", { className: "below" }, ...this.buttons, this.stop),
      this.panel.element,
    );
    this.model.addEventListener("change", () => this.begin());
    this.template.addEventListener("change", () => this.begin());
    this.bars.addEventListener("keydown", (event) => this.step(event));
    document.getElementById("columns").append(this.element);
    columns.push(this);
    changed();
  }

  remove() {
    this.writing?.abort();
    this.asked += 1;
    columns.splice(columns.indexOf(this), 1);
    this.element.remove();
    changed();
  }

  // Of the text alone again.
  begin() {
    this.path = [];
    return this.go(0);
  }

  go(at) {
    this.writing?.abort();
    this.at = at;
    return this.look();
  }

  choose(candidate) {
    const here = this.path[this.at];
    if (!here || String(here.ids) !== String(candidate.ids)) {
      this.path = [...this.path.slice(0, this.at), { ids: candidate.ids, text: candidate.text, ranks: [], ends: candidate.ends }];
    }
    this.element.dataset.focus = "first";
    return this.go(this.at + 1);
  }

  sent() {
    return {
      model: this.model.value,
      template: this.template.checked,
      text: text.value,
      path: this.path.map((piece) => piece.ids),
      ...settings(),
    };
  }

  // The last that was asked for is shown, whatever comes in between.
  async look() {
    const mine = (this.asked += 1);
    this.element.setAttribute("aria-busy", "true");
    try {
      const seen = await (await ask("/next/look", { ...this.sent(), at: this.at, count: 10 })).json();
      if (mine !== this.asked) return;
      this.seen = seen;
      this.path = seen.path;
      this.mistake.textContent = "";
    } catch (error) {
      if (mine !== this.asked) return;
      this.seen = null;
      this.mistake.textContent = error.message;
    }
    this.element.removeAttribute("aria-busy");
    this.show();
  }

  async write(count) {
    this.writing?.abort();
    const own = (this.writing = new AbortController());
    this.path = this.path.slice(0, this.at);
    this.asked += 1;
    const tokens = this.path.reduce((sum, piece) => sum + piece.ids.length, 0);
    this.show();
    let failed = "";
    try {
      const sent = { ...this.sent(), max_tokens: count, seed: number("seed") + tokens };
      const reader = (await ask("/next/write", sent, own.signal)).body.pipeThrough(new TextDecoderStream()).getReader();
      let held = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const lines = (held + part.value).split("\n");
        held = lines.pop();
        if (this.writing !== own) return;
        const pieces = lines.map((line) => JSON.parse(line));
        failed = pieces.at(-1)?.error ?? "";
        this.path.push(...pieces.filter((piece) => !piece.error));
        this.at = this.path.length;
        this.text();
      }
    } catch (error) {
      if (error.name !== "AbortError") failed = error.message;
    }
    if (this.writing !== own) return;
    this.writing = null;
    await this.look();
    if (failed) this.mistake.textContent = failed;
  }

  show() {
    this.text();
    this.candidates();
    const ended = this.at > 0 && this.path[this.at - 1]?.ends;
    for (const button of this.buttons) button.disabled = Boolean(this.writing || ended || !this.seen);
    this.stop.hidden = !this.writing;
    this.panel.element.hidden = Boolean(this.writing || !this.template.checked);
    this.panel.look();
  }

  // What PPO did is asked of: what was typed, else what was written.
  answer(typed) {
    if (typed === null && !this.path.length) return null;
    return typed === null ? this.sent() : { ...this.sent(), path: [], answer: typed };
  }

  text() {
    const read = make("span", { className: "read", textContent: this.seen?.prompt ?? "" });
    this.written.replaceChildren(read);
    this.path.forEach((piece, place) => {
      if (place === this.at) this.written.append(make("span", { className: "caret" }));
      const rank = (piece.ranks ?? []).join("·");
      const shown = piece.text.replaceAll("\n", "↵");
      const button = make("button", { type: "button", className: "piece", onclick: () => this.go(place) }, shown, make("sub", { textContent: rank }));
      button.title = `${percent(piece.probability ?? 0)}, ${words["rank of"]} ${rank}`;
      button.setAttribute("aria-label", `${visible(piece.text)}: ${button.title}`);
      button.style.setProperty("--p", piece.probability ?? 0);
      button.classList.toggle("after", place > this.at);
      button.classList.toggle("here", place === this.at);
      this.written.append(button, piece.text.includes("\n") ? "\n" : "");
    });
    if (this.at === this.path.length) this.written.append(make("span", { className: "caret" }));
    this.written.scrollTop = this.at === this.path.length ? this.written.scrollHeight : this.written.scrollTop;
  }

  candidates() {
    const next = this.seen?.next;
    this.bars.replaceChildren();
    this.figures.textContent = this.seen && !next ? words.ended : "";
    if (!next || this.writing) return;
    const picked = this.path[this.at];
    const rows = next.candidates.map((one) => ({ ...one, isPicked: picked && String(picked.ids) === String(one.ids) }));
    if (picked && !rows.some((one) => one.isPicked)) {
      rows.push({ ...picked, probability: picked.shaped ?? 0, isPicked: true, isBelow: true });
    }
    const most = Math.max(...rows.map((one) => one.probability), next.rest, 1e-9);
    for (const row of rows) {
      const note = row.isPicked ? ` ${words.chosen}, ${words["rank of"]} ${picked.ranks.join("·")}` : "";
      const name = row.ends ? `⟨${words["end of text"]}⟩` : visible(row.text) || "∅";
      const button = make("button", { type: "button", onclick: () => this.choose(row), title: `${row.probability}${note}` });
      button.append(...this.line(name, row.probability, most));
      button.setAttribute("aria-label", `${name}: ${percent(row.probability)}${note}`);
      const item = make("li", { className: row.isPicked ? "picked" : "" }, button);
      Object.assign(item.dataset, { probability: row.probability, below: row.isBelow ? 1 : 0 });
      if (row.isPicked) item.setAttribute("aria-current", "true");
      this.bars.append(item);
    }
    const others = make("li", { className: "others" }, ...this.line(words.rest, next.rest, most));
    others.dataset.probability = next.rest;
    this.bars.append(others);
    const chosen = picked ? ` · ${words.chosen}: ${words["rank of"]} ${picked.ranks.join("·")}` : "";
    const bits = (next.entropy / Math.LN2).toFixed(2);
    this.figures.textContent = `${words.entropy} ${bits} ${words.bits} · ${this.seen.prompt_tokens} ${words["prompt tokens"]}${chosen}`;
    if (this.element.dataset.focus) this.bars.querySelector("button")?.focus({ preventScroll: true });
    delete this.element.dataset.focus;
  }

  line(name, probability, most) {
    const fill = make("span");
    fill.style.width = `${(100 * probability) / most}%`;
    return [
      make("span", { className: "name", textContent: name }),
      make("span", { className: "bar" }, fill),
      make("span", { className: "percent", textContent: percent(probability) }),
    ];
  }

  // Up and down among the candidates, left to the place before.
  step(event) {
    const buttons = [...this.bars.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      buttons[at + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
    } else if (event.key === "ArrowLeft" && this.at > 0) {
      this.element.dataset.focus = "first";
      this.go(this.at - 1);
    } else {
      return;
    }
    event.preventDefault();
  }
}

const add = document.getElementById("add");
const changed = () => {
  add.disabled = columns.length >= MOST;
};
const lookAll = () => columns.forEach((column) => (column.writing ? null : column.look()));
const begin = () => columns.forEach((column) => column.begin());

const open = (example) => {
  for (const one of document.querySelectorAll(".example")) one.setAttribute("aria-pressed", one === example);
  while (columns.length) columns[0].remove();
  text.value = example.dataset.text;
  for (const column of example.dataset.columns.trim().split(" ")) {
    new Column(models[parseInt(column, 10)], column.endsWith("t"));
  }
  begin();
};

for (const example of document.querySelectorAll(".example")) example.addEventListener("click", () => open(example));
for (const slider of document.querySelectorAll("#settings input[type=range]")) {
  const look = later(200, lookAll);
  slider.addEventListener("input", () => {
    document.querySelector(`output[for="${slider.id}"]`).textContent = slider.value;
    look();
  });
}
text.addEventListener("input", later(350, begin));
add.addEventListener("click", () => new Column(models[columns.length % models.length], columns.at(-1)?.template.checked ?? false).begin());
open(document.querySelector(".example"));
