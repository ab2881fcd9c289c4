// Two replies to one prompt, blind: which is better, and by how much.

import { get, post } from "./api.js";
import { ask, empty, failure, h, isShortcut, loading, pageHead, replace, toast } from "./dom.js";

const CHOICES = [
  { key: "1", label: "A is much better", short: "A, much", choice: "left", strength: 3 },
  { key: "2", label: "A is better", short: "A", choice: "left", strength: 2 },
  { key: "3", label: "A is a little better", short: "A, a little", choice: "left", strength: 1 },
  { key: "4", label: "They are about the same", short: "Same", choice: "tie", strength: 1 },
  { key: "5", label: "B is a little better", short: "B, a little", choice: "right", strength: 1 },
  { key: "6", label: "B is better", short: "B", choice: "right", strength: 2 },
  { key: "7", label: "B is much better", short: "B, much", choice: "right", strength: 3 },
];
const REASONS = [
  ["both_bad", "Both are bad"],
  ["unclear", "I can't tell what was asked"],
  ["not_my_field", "I don't know enough about it"],
  ["harmful", "I'd rather not read this"],
  ["other", "Something else"],
];

export async function show(main) {
  const page = new Compare();
  replace(main, pageHead("Compare", "Which reply would you rather have got? Who wrote which is hidden, and sides are drawn by lot.", page.progress), page.place, page.said);
  const keys = (event) => page.onKey(event);
  document.addEventListener("keydown", keys);
  await page.next();
  return () => document.removeEventListener("keydown", keys);
}

class Compare {
  constructor() {
    this.progress = h("p.chip.accent.number", { role: "status" });
    this.place = h("div.stack");
    this.said = h("p.sr-only", { role: "status", "aria-live": "polite" });
    this.pair = null;
    this.last = null;
    this.busy = false;
  }

  async next() {
    replace(this.place, loading("Looking for a pair"));
    try {
      const answer = await get("/v1/comparisons/next");
      this.progress.textContent = `${answer.judged} judged`;
      if (answer.pair) this.draw(answer.pair);
      else this.drawNone(answer.judged);
    } catch (error) {
      replace(this.place, failure(error, () => this.next()));
    }
  }

  drawNone(judged) {
    this.pair = null;
    replace(this.place, empty("compare", judged ? "All done" : "Nothing to compare yet",
      judged ? "There is no pair left that you haven't judged. Thank you." : "Pairs come from conversations that are kept, and from files: keel feedback import-pairs.",
      h("button", { type: "button", onclick: () => this.next() }, "Look again"), this.back()));
  }

  draw(pair) {
    this.pair = pair;
    this.began = performance.now();
    const turns = pair.prompt.map((turn) => h("div.stack.tight", null, h("h3.small.soft", null, { user: "The user asks", assistant: "The assistant had said", system: "The assistant was told" }[turn.role] ?? turn.role), h("p.said", null, turn.content)));
    const side = (name, letter) => h("article.card.stack.reply", { "aria-label": `Reply ${letter}` }, h("h2.letter", null, h("span.sr-only", null, "Reply "), letter), h("p.said", null, pair.replies[name]));
    this.heading = h("h2.sr-only", { tabindex: -1 }, "The prompt");
    const buttons = CHOICES.map((one) => h("button.scale", { type: "button", "aria-label": one.label, title: one.label, onclick: () => this.judge(one) }, h("kbd", { "aria-hidden": "true" }, one.key), h("span", null, one.short)));
    replace(this.place,
      h("section.card.stack.prompt", null, this.heading, turns, pair.objective !== "overall" ? h("p.help", null, `Judge only how ${pair.objective} the replies are.`) : null),
      h("div.sides", null, side("left", "A"), side("right", "B")),
      h("div.judge.card.stack.tight", null,
        h("div.scales", { role: "group", "aria-label": "Which reply is better?" }, buttons),
        h("div.row.spread", null, h("p.help.keys", null, h("kbd", null, "1"), " to ", h("kbd", null, "7"), " choose, ", h("kbd", null, "S"), " skips, ", h("kbd", null, "Z"), " goes back"),
          h("div.row", null, this.back(), h("button", { type: "button", onclick: () => this.skip() }, "Skip")))));
    this.heading.focus({ preventScroll: true });
  }

  back() {
    return this.last ? h("button.quiet", { type: "button", onclick: () => this.undo() }, "Change the last one") : null;
  }

  undo() {
    if (!this.last) return;
    this.draw(this.last);
    this.last = null;
    this.said.textContent = "The last pair again.";
  }

  async skip() {
    const choices = REASONS.map(([value, label], i) => h("label.row.option", null, h("input", { type: "radio", name: "reason", value, required: true, checked: i === 0 }), label));
    const answer = await ask("Why do you skip it?", h("fieldset.stack.tight", null, h("legend.sr-only", null, "Reason"), choices), "Skip");
    if (answer) await this.judge({ choice: "skip", strength: 1, reason: answer.reason });
  }

  async judge({ choice, strength, reason = "" }) {
    if (this.busy || !this.pair) return;
    this.busy = true;
    const pair = this.pair;
    try {
      await post("/v1/comparisons", { pair: pair.id, left: pair.left, choice, strength, reason, seconds: Math.min(86400, (performance.now() - this.began) / 1000) });
      this.last = pair;
      this.said.textContent = "Stored. The next pair.";
      scrollTo(0, 0);
      await this.next();
    } catch (error) {
      toast(error.message);
    } finally {
      this.busy = false;
    }
  }

  onKey(event) {
    if (!isShortcut(event)) return;
    const one = CHOICES.find((choice) => choice.key === event.key);
    const key = event.key.toLowerCase();
    if (one) this.judge(one);
    else if (key === "s" && this.pair) this.skip();
    else if (key === "z") this.undo();
    else return;
    event.preventDefault();
  }
}
