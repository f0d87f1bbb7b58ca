// What the pages of models share: elements, questions to the server, and the panel of what PPO did to an answer.
"use strict";

{
  const texts = JSON.parse(document.querySelector("[data-panel]").dataset.panel);
  const language = document.documentElement.lang === "zh-Hant" ? 1 : 0;
  const say = (name) => texts[name][language];

  const make = (tag, properties = {}, ...inside) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...inside);
    return element;
  };
  const visible = (piece) => piece.replaceAll("\n", "↵").replace(/^ +| +$/g, (all) => "·".repeat(all.length));
  const percent = (p) => (p >= 0.9995 ? "100 %" : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : p > 0 ? "< 0.1 %" : "0 %");
  const signed = (x) => (Math.abs(x) < 0.005 ? "0.00" : `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`);

  // Tries again where too much was asked at once. Throws what the server says is wrong.
  const ask = async (address, sent, signal) => {
    for (let tries = 0; ; tries += 1) {
      let response;
      try {
        response = await fetch(address, {
          method: "POST",
          headers: { "content-type": "application/json", "x-csrf-token": page.token },
          body: JSON.stringify(sent),
          signal,
        });
      } catch (error) {
        throw error.name === "AbortError" ? error : new Error(say("away"));
      }
      if (response.ok) return response;
      if (response.status === 429 && tries < 6) {
        await new Promise((done) => setTimeout(done, 300 * (tries + 1)));
        continue;
      }
      const said = await response.text();
      throw new Error(response.headers.get("content-type")?.includes("json") ? JSON.parse(said).error : said);
    }
  };

  // `sent()`: what is asked, with `model`; null where there is no answer yet. `types`: whether one can be typed.
  class Panel {
    constructor(models, sent, { types = false, shown = models } = {}) {
      Object.assign(this, { sent, asked: 0, seen: null, typed: null, names: Object.fromEntries(models.map((name, at) => [name, shown[at]])) });
      const names = models.map((name, at) => make("option", { textContent: shown[at], value: name }));
      this.reference = make("select", { onchange: () => this.look() }, ...names);
      this.reference.value = models.find((name) => name.split("/").at(-1) === "sft") ?? models[0];
      const measures = ["kl", "reward", "value"].map((name) => make("option", { textContent: say(name), value: name }));
      this.measure = make("select", { onchange: () => this.show() }, ...measures);
      this.body = make("div");
      this.body.setAttribute("aria-live", "polite");
      this.element = make(
        "details",
        { className: "change", ontoggle: () => this.look() },
        make("summary", { textContent: say("what ppo did") }),
        make("p", { className: "choose" },
          make("label", {}, `${say("reference")} `, this.reference), make("label", {}, `${say("measure")} `, this.measure)),
        this.body,
      );
      if (types) this.element.append(this.typing());
    }

    typing() {
      const area = make("textarea", { rows: 2, maxLength: 20000, dir: "auto", spellcheck: false });
      const back = make("button", { type: "button", textContent: say("written"), hidden: true });
      const put = (typed) => {
        this.typed = typed;
        back.hidden = typed === null;
        this.look();
      };
      back.onclick = () => put(null);
      const onsubmit = (event) => {
        event.preventDefault();
        put(area.value);
      };
      const show = make("button", { textContent: say("show") });
      return make("form", { onsubmit }, make("label", {}, say("typed"), area), make("p", {}, show, back));
    }

    // The last that was asked for is shown, whatever comes in between.
    async look() {
      if (!this.element.open || this.element.hidden) return;
      const mine = (this.asked += 1);
      const sent = this.sent(this.typed);
      if (!sent) {
        this.seen = null;
        this.element.removeAttribute("aria-busy");
        this.body.replaceChildren(make("p", { className: "soft", textContent: say("no answer") }));
        return;
      }
      this.element.setAttribute("aria-busy", "true");
      try {
        const seen = await (await ask("/next/change", { ...sent, reference: this.reference.value })).json();
        if (mine !== this.asked) return;
        this.seen = { ...seen, names: [sent.model, this.reference.value].map((name) => this.names[name]) };
        this.show();
      } catch (error) {
        if (mine !== this.asked) return;
        this.body.replaceChildren(make("p", { className: "mistake", textContent: error.message }));
      }
      this.element.removeAttribute("aria-busy");
    }

    show() {
      const { seen } = this;
      if (!seen) return;
      const there = { kl: true, reward: seen.kl_coef !== null, value: seen.tokens[0].value !== null };
      for (const option of this.measure.options) option.disabled = !there[option.value];
      if (!there[this.measure.value]) this.measure.value = "kl";
      const missing = seen.missing.map((said) => make("p", { className: "mistake", textContent: said[language] }));
      const stop = say("stop");
      const notes = [`${say("nats")} ${seen.temperature}${stop}`];
      if (there.reward) notes.push(`${say("paid")} ${seen.kl_coef}${seen.score ? say("and score") : ""}${stop}`);
      const figures = make("p", { className: "sum", textContent: this.figures() });
      const note = make("p", { className: "soft", textContent: notes.join("") });
      this.body.replaceChildren(...this.coloured(), figures, ...missing, note, this.table(there));
    }

    // The answer, each token with its number, and what colour, line and sign mean.
    coloured() {
      const measure = this.measure.value;
      const most = Math.max(...this.seen.tokens.map((token) => Math.abs(token[measure])), 0.01);
      const mark = (x, ...inside) => {
        const className = `token ${signed(x) === "0.00" ? "" : x < 0 ? "less" : "more"}`;
        const marked = make("span", { className }, ...inside);
        marked.style.setProperty("--p", Math.abs(x) / most);
        return marked;
      };
      const tokens = this.seen.tokens.map((token) => {
        const number = make("sub", { textContent: signed(token[measure]) });
        const marked = mark(token[measure], token.text.replaceAll("\n", "↵"), "\u2060", number); // on one line
        marked.title = `${say(measure)} ${signed(token[measure])}`;
        return marked;
      });
      const legend = make(
        "p",
        { className: "soft legend" },
        make("span", {}, mark(-most, "−"), ` ${say(`${measure} less`)}`),
        make("span", {}, mark(most, "+"), ` ${say(`${measure} more`)}`),
        `${say("legend")} ±${most.toFixed(2)}${say("stop")}`,
      );
      return [legend, make("p", { className: "tokens", dir: "auto" }, ...tokens)];
    }

    figures() {
      const { seen } = this;
      const verdict = { true: say("is right"), false: `${say("is wrong")} ${percent(seen.sure_and_wrong ?? 0)}` };
      const figures = [`KL ${signed(seen.kl)}`, `${say("probability")} ${percent(seen.probability)}`, verdict[seen.correct]];
      if (seen.score) {
        const { names, raw, shaped, no_end, total } = seen.score;
        let score = `${say("score")} ${signed(raw)} (${say("by")} ${names.join(", ")})`;
        if (signed(raw) !== signed(shaped)) score += `, ${say("shaped")} ${signed(shaped)}`;
        if (no_end) score += ` − ${no_end.toFixed(2)} (${say("no end")}) = ${signed(total)}`;
        figures.push(score);
      }
      return figures.filter(Boolean).join(" · ");
    }

    table(there) {
      const { seen } = this;
      const columns = [
        ...seen.names.map((name, at) => [`log-prob ${name}`, (token) => token[at ? "reference" : "logprob"].toFixed(2).replace("-", "−")]),
        ["Δ = KL", (token) => signed(token.kl)],
        ...(there.reward ? [[say("penalty"), (token) => signed(token.penalty)], [say("reward"), (token) => signed(token.reward)]] : []),
        ...(there.value ? [[say("value"), (token) => signed(token.value)]] : []),
      ];
      const head = ["", ...columns.map(([name]) => name)].map((name) => make("th", { textContent: name, scope: "col" }));
      const rows = seen.tokens.map((token) =>
        make("tr", {}, make("th", { textContent: visible(token.text), scope: "row" }),
          ...columns.map(([, cell]) => make("td", { textContent: cell(token) }))));
      const scroll = make("div", { className: "scroll", tabIndex: 0 });
      scroll.append(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
      return scroll;
    }
  }

  Object.assign(page, { make, visible, percent, ask, Panel });
}
