// What the pages share: sending a decision, dialogs, and the time a task took while it was looked at.
"use strict";

const page = {
  token: document.querySelector('meta[name="csrf"]').content,
  answers: document.getElementById("answers"),
  status: document.getElementById("status"),
  sending: false,
  seconds: 0,

  say(text) {
    if (this.status) this.status.textContent = text;
  },

  // Sends once: the id of the decision was made with the page, so that a second sending is kept once.
  async send(kind, content) {
    if (this.sending) return;
    this.sending = true;
    const { uid, assignment } = this.answers.dataset;
    const decision = { uid, assignment: Number(assignment), kind, content, seconds: this.seconds };
    for (let tries = 0; tries < 4; tries += 1) {
      try {
        const response = await fetch("/decisions", {
          method: "POST",
          headers: { "content-type": "application/json", "x-csrf-token": this.token },
          body: JSON.stringify(decision),
        });
        if (response.ok) {
          const { truth } = await response.json();
          this.say(this.status.dataset.saved);
          if (truth) await this.reveal(truth);
          location.assign(location.pathname.replace(/\/\d+$/, ""));
          return;
        }
        if (response.status < 500 && response.status !== 429) {
          this.say(`${this.status.dataset.failed} ${await response.text()}`);
          break;
        }
      } catch {
        // the server is away for a moment
      }
      this.say(this.status.dataset.failed);
      await new Promise((done) => setTimeout(done, 500 * 2 ** tries));
    }
    this.sending = false;
  },

  // Shown after a ranking was kept, until the labeler goes on.
  reveal(truth) {
    for (const open of document.querySelectorAll("dialog[open]")) open.close();
    document.getElementById("truth-text").textContent = truth;
    const dialog = this.dialog("truth");
    return new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  },

  remarks(root, content) {
    content.flags = {};
    for (const card of root) {
      const chosen = [...card.querySelectorAll(".flags input:checked")].map((box) => box.value);
      if (chosen.length) content.flags[card.dataset.answer] = chosen;
    }
    if (!Object.keys(content.flags).length) delete content.flags;
    const comment = document.getElementById("comment").value.trim();
    if (comment) content.comment = comment;
    return content;
  },

  restore(root, content) {
    for (const card of root) {
      for (const name of (content.flags ?? {})[card.dataset.answer] ?? []) {
        const box = card.querySelector(`.flags input[value="${CSS.escape(name)}"]`);
        if (box) box.checked = true;
      }
      this.count(card);
      card.querySelector(".flags").addEventListener("change", () => this.count(card));
    }
    document.getElementById("comment").value = content.comment ?? "";
  },

  count(card) {
    const chosen = card.querySelectorAll(".flags input:checked").length;
    card.querySelector(".flags .count").textContent = chosen ? `(${chosen})` : "";
  },

  typing(target) {
    return target.closest("textarea, input:not([type=radio]):not([type=checkbox]), select") !== null;
  },

  dialog(id) {
    const dialog = document.getElementById(id);
    if (!dialog.open) dialog.showModal();
    return dialog;
  },

  // The buttons and dialogs that both pages have.
  shared() {
    document.getElementById("keys").addEventListener("click", () => this.dialog("help"));
    document.getElementById("skip").addEventListener("click", () => this.dialog("skipping"));
    for (const button of document.querySelectorAll("dialog .cancel")) {
      button.addEventListener("click", () => button.closest("dialog").close());
    }
    const skipping = document.getElementById("skipping");
    skipping.addEventListener("close", () => {
      if (skipping.returnValue !== "skip") return;
      skipping.returnValue = "";
      const reason = document.getElementById("reason").value.trim();
      this.send("skipped", reason ? { reason } : {});
    });
  },

  previous() {
    location.assign(document.getElementById("undo").dataset.previous);
  },
};

setInterval(() => {
  if (document.visibilityState === "visible") page.seconds += 1;
}, 1000);
