// What guards withheld: was that right?

import { get, post } from "./api.js";
import { ago, empty, failure, h, isShortcut, loading, pageHead, replace, toast } from "./dom.js";
import { findingList, marked } from "./findings.js";

const STATES = [["open", "Waiting"], ["overturned", "Overturned"], ["upheld", "Upheld"]];

export async function show(main) {
  const page = new Reviews();
  replace(main, pageHead("Reviews", "What guards withheld or passed on. What you overturn becomes labelled data for the guards.", page.count), page.filters, page.place);
  const keys = (event) => page.onKey(event);
  document.addEventListener("keydown", keys);
  await page.load();
  return () => document.removeEventListener("keydown", keys);
}

class Reviews {
  constructor() {
    this.count = h("p.chip.accent.number", { role: "status" });
    this.status = "open";
    this.stage = h("select", { id: "stage", onchange: () => this.load() }, h("option", { value: "" }, "requests and replies"), h("option", { value: "input" }, "requests"), h("option", { value: "output" }, "replies"));
    this.tabs = STATES.map(([value, label]) => h("button", { type: "button", "aria-pressed": String(value === this.status), onclick: () => this.choose(value) }, label));
    this.filters = h("div.row.spread.filters", null, h("div.row", { role: "group", "aria-label": "Which items" }, this.tabs), h("div.row", null, h("label", { for: "stage" }, "Show"), h("div", null, this.stage)));
    this.place = h("div");
    this.items = [];
  }

  choose(status) {
    this.status = status;
    this.tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(STATES[i][0] === status)));
    return this.load();
  }

  async load() {
    replace(this.place, loading());
    const wanted = `status=${this.status}${this.stage.value ? `&stage=${this.stage.value}` : ""}`;
    this.wanted = wanted;
    try {
      const answer = await get(`/admin/v1/reviews?${wanted}`);
      if (this.wanted !== wanted) return; // something else was chosen meanwhile
      this.items = answer.items;
      this.waiting(answer.open);
      this.draw(0);
    } catch (error) {
      replace(this.place, failure(error, () => this.load()));
    }
  }

  waiting(open) {
    this.open = open;
    this.count.textContent = open === 1 ? "1 waits" : `${open} wait`;
  }

  draw(at) {
    if (!this.items.length) {
      replace(this.place, this.status === "open" ? empty("reviews", "Nothing waits", "What guards escalate, and what they block where the policy says so, comes here.") : empty("reviews", "Nothing here", "No item was decided that way yet."));
      return;
    }
    this.at = Math.min(at, this.items.length - 1);
    this.buttons = this.items.map((item, i) => h("button.choice", { type: "button", "aria-pressed": String(i === this.at), onclick: () => this.select(i, true) },
      h("strong", null, headline(item)), h("span.soft.small", null, `${item.policy} · ${item.stage === "input" ? "request" : "reply"} · ${ago(item.at)}`)));
    this.detail = h("section.card.stack", { "aria-label": "Item" });
    replace(this.place, h("div.split", null, h("nav.stack.tight.queue", { "aria-label": "Items" }, this.buttons), this.detail));
    this.select(this.at);
  }

  select(at, move = false) {
    this.at = at;
    this.buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === at)));
    this.buttons[at].scrollIntoView({ block: "nearest" });
    drawItem(this.detail, this.items[at], (decision, note) => this.decide(decision, note));
    if (move && matchMedia("(max-width: 46rem)").matches) this.detail.scrollIntoView();
  }

  async decide(decision, note = "") {
    const item = this.items[this.at];
    if (!item || this.busy || item.status === decision) return;
    this.busy = true;
    try {
      await post(`/admin/v1/reviews/${encodeURIComponent(item.id)}`, { decision, expected: item.status, note });
      toast({ upheld: "Upheld.", overturned: "Overturned: it will be exported as labelled data.", open: "Back in the queue." }[decision]);
      this.items.splice(this.at, 1);
      this.waiting(this.open + (decision === "open" ? 1 : item.status === "open" ? -1 : 0));
      this.draw(this.at);
      this.buttons?.[this.at]?.focus({ preventScroll: true });
    } catch (error) {
      toast(error.message);
      if (error.status === 409) await this.load();
    } finally {
      this.busy = false;
    }
  }

  onKey(event) {
    if (!isShortcut(event) || !this.items.length) return;
    const key = event.key.toLowerCase();
    if (key === "j" && this.at + 1 < this.items.length) this.select(this.at + 1);
    else if (key === "k" && this.at > 0) this.select(this.at - 1);
    else if (key === "u") this.decide("upheld", this.detail.querySelector("textarea")?.value);
    else if (key === "o") this.decide("overturned", this.detail.querySelector("textarea")?.value);
    else return;
    event.preventDefault();
  }
}

function headline(item) {
  const worst = item.findings.find((f) => f.action === item.action) ?? item.findings[0];
  return worst ? `${worst.guard}: ${worst.entity_type.toLowerCase().replaceAll("_", " ")}` : "A guard could not answer";
}

function drawItem(place, item, decide) {
  const note = h("textarea", { id: "note", rows: 2, maxlength: 2000, value: item.note ?? "" });
  const say = (decision) => () => decide(decision, note.value);
  const open = item.status === "open";
  const buttons = [
    item.status !== "upheld" && h("button.primary", { type: "button", onclick: say("upheld") }, "Uphold ", h("kbd", { "aria-hidden": "true" }, "U")),
    item.status !== "overturned" && h("button.danger", { type: "button", onclick: say("overturned") }, "Overturn ", h("kbd", { "aria-hidden": "true" }, "O")),
    !open && h("button.quiet", { type: "button", onclick: say("open") }, "Put it back"),
  ];
  replace(place,
    h("div.row.spread", null, h("h2", null, headline(item)), h(`span.chip.${item.action === "block" ? "bad" : "warn"}`, null, item.action === "block" ? "blocked" : "escalated")),
    item.prompt?.length ? h("details", { open: item.prompt.length === 1 }, h("summary", null, "The conversation"), h("div.stack.tight", null, item.prompt.map((turn) => h("div", null, h("h3.small.soft", null, turn.role), h("p.said", null, turn.content))))) : null,
    h("div.stack.tight", null, h("h3", null, item.stage === "input" ? "What was asked" : "What the model said"),
      item.text === null ? h("p.note", null, "The text was not kept: this policy keeps only what was found.") : h("p.said.sunken", null, marked(item.text, item.findings))),
    item.findings.length ? findingList(item.findings) : h("p.note.warn", null, "No finding: a guard failed or was late, and the policy withholds then."),
    h("dl.pairs.small", null, h("dt", null, "Policy"), h("dd", null, h("code", null, `${item.policy}@${item.policy_digest.slice(0, 12)}`)),
      h("dt", null, "Checkpoint"), h("dd", null, h("code", null, item.checkpoint.slice(0, 48))),
      h("dt", null, "Request"), h("dd", null, h("code", null, item.request_id)),
      item.decided_by ? [h("dt", null, "Decided"), h("dd", null, `${item.status} by ${item.decided_by}, ${ago(item.decided_at)}`)] : []),
    h("div.field", null, h("label", { for: "note" }, "A note, if you like"), note),
    h("div.row", null, buttons),
    h("p.help.keys", null, h("kbd", null, "J"), " and ", h("kbd", null, "K"), " go through the list"));
}
