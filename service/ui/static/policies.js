// Read a policy, and try it on a text without generating anything.

import { get, post } from "./api.js";
import { empty, failure, h, loading, pageHead, replace } from "./dom.js";
import { guardTimes, marked, readable, statusChip } from "./findings.js";

export async function show(main, { who }) {
  const policies = (await get("/v1/models")).data;
  const variants = who.role === "admin" ? (await get("/admin/v1/policies")).policies.filter((one) => one.tenant) : [];
  const detail = h("section.card.stack", { "aria-live": "polite", "aria-label": "Policy" });
  const head = pageHead("Policies", "Which guards stand around the model, what each policy says, and what it makes of a text.");
  if (!policies.length) {
    replace(main, head, empty("policies", "No policy is served", "Add a policy file, then load this page again."));
    return;
  }
  const buttons = policies.map((policy) => h("button.choice", { type: "button", "aria-pressed": "false", onclick: () => choose(policy) },
    h("strong", null, policy.id), h("span.soft.small", null, policy.description || "No description.")));
  const choose = (policy) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(policies[i] === policy)));
    drawPolicy(detail, policy, who.role === "admin", variants.filter((one) => one.name === policy.id));
  };
  replace(main, head, h("div.split", null, h("nav.stack.tight", { "aria-label": "Policies" }, buttons), detail));
  choose(policies[0]);
}

function drawPolicy(detail, policy, admin, variants) {
  const guards = (names) => names.length ? names.map((name) => h("span.chip.accent", null, name)) : h("span.soft", null, "none");
  replace(detail,
    h("div.row.spread", null, h("h2", null, policy.id), h("code.small.soft", null, policy.policy_digest.slice(0, 12))),
    h("dl.pairs", null,
      h("dt", null, "Answers"), h("dd", null, h("code", null, policy.checkpoint)),
      h("dt", null, "On the way in"), h("dd.row", null, guards(policy.input_guards)),
      h("dt", null, "On the way out"), h("dd.row", null, guards(policy.output_guards))),
    tryOut(policy),
    admin ? h("div.stack.tight", null, source(policy.id, "The whole policy"), variants.map(({ tenant }) => source(`${policy.id}#${tenant}`, `As the tenant ${tenant} has it`))) : null);
}

function source(name, title) {
  const place = h("div", null, loading());
  const read = async () => {
    try {
      const { yaml, path } = await get(`/admin/v1/policies/${encodeURIComponent(name)}`);
      replace(place, path && h("p.help", null, "From ", h("code", null, path)), h("pre.source", { tabindex: 0, "aria-label": `${title}, its text` }, highlighted(yaml)));
    } catch (error) {
      replace(place, failure(error, read));
    }
  };
  return h("details", { ontoggle: (event) => { if (event.target.open) read(); } }, h("summary", null, title), place);
}

/** Names before a colon stand out; everything else is as it is. */
function highlighted(yaml) {
  return yaml.split("\n").flatMap((line) => {
    const [, lead, name, rest] = /^(\s*(?:- )?)([\w-]+:)(.*)$/.exec(line) ?? [null, line, "", ""];
    return [lead, name && h("span.yaml-name", null, name), `${rest}\n`].filter(Boolean);
  });
}

function tryOut(policy) {
  const text = h("textarea", { id: "try-text", rows: 4, required: true, placeholder: "A text to examine" });
  const stage = h("select", { id: "try-stage" }, h("option", { value: "input" }, "a user's message"), h("option", { value: "output" }, "a reply of the model"));
  const button = h("button.primary", { type: "submit" }, "Examine");
  const result = h("div", { role: "status" });
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    replace(result, loading("Examining"));
    try {
      const answer = await post("/v1/checks", { model: policy.id, input: text.value, stage: stage.value });
      replace(result, verdict(text.value, answer.results[0]));
    } catch (error) {
      replace(result, failure(error));
    } finally {
      button.disabled = false;
    }
  };
  return h("form.stack.try", { onsubmit: submit },
    h("h3", null, "Try it"),
    h("div.field", null, h("label", { for: "try-text" }, "Text"), text),
    h("div.row", null, h("label", { for: "try-stage" }, "Examined as"), h("div", null, stage), button), result);
}

function verdict(text, result) {
  const findings = result.guards.flatMap((guard) => guard.findings.map((finding) => ({ ...finding, guard: guard.guard, action: guard.action })));
  const failed = result.guards.filter((guard) => guard.state === "failed").map((guard) => guard.guard);
  return h("div.stack", null,
    h("div.row", null, statusChip(result.status), result.action !== "allow" ? h("span.soft", null, `strongest action: ${result.action}`) : null),
    h("p.said.sunken", null, marked(text, findings)),
    result.status === "modified" ? h("div.field", null, h("span.label", null, "What goes on"), h("p.said.sunken", null, result.content)) : null,
    failed.length ? h("p.note.warn", null, `Could not answer: ${failed.join(", ")}.`) : null,
    result.guards.length ? scores(result.guards) : h("p.help", null, "This policy has no guards at this stage."));
}

function scores(guards) {
  const rows = guards.flatMap((guard) => {
    const entries = Object.entries(guard.categories);
    return (entries.length ? entries : [["", guard.score]]).map(([name, score]) => h("tr", null, h("th", { scope: "row" }, guard.guard), h("td", null, readable(name)),
      h("td", null, h("meter", { min: 0, max: 1, value: score, "aria-label": `${guard.guard} ${readable(name)} ${score.toFixed(3)}` }), h("span.number", null, score.toFixed(3)))));
  });
  return h("details", { open: true }, h("summary", null, "Every guard's scores and times"), h("div.stack", null,
    h("div.scroll-x", { tabindex: 0, role: "region", "aria-label": "Scores" }, h("table.times", null, h("thead", null, h("tr", null, h("th", { scope: "col" }, "Guard"), h("th", { scope: "col" }, "For"), h("th", { scope: "col" }, "Score"))), h("tbody", null, rows))),
    guardTimes(guards)));
}
