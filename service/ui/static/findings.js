// What guards found, in words and in place: offsets count code points, as the gateway's do.

import { h } from "./dom.js";

const KINDS = { block: "bad", escalate: "bad", redact: "warn", mask: "warn", hash: "warn", rewrite: "warn", log: "accent", allow: "accent" };
const STATUS = { passed: ["good", "Passed"], modified: ["warn", "Changed"], blocked: ["bad", "Blocked"] };

export function actionKind(action) {
  return KINDS[action] ?? "accent";
}

export function statusChip(status) {
  const [kind, word] = STATUS[status] ?? ["accent", status];
  return h(`span.chip.${kind}`, null, word);
}

export function readable(name) {
  return name.toLowerCase().replaceAll("_", " ");
}

/** The text as nodes, with every finding's span marked; overlapping ones become one mark. */
export function marked(text, findings) {
  const points = Array.from(text);
  const spans = [];
  for (const finding of [...findings].sort((a, b) => a.start - b.start || b.end - a.end)) {
    const last = spans.at(-1);
    if (finding.end <= finding.start) continue;
    if (last && finding.start < last.end) {
      last.end = Math.max(last.end, finding.end);
      last.findings.push(finding);
    } else spans.push({ start: finding.start, end: finding.end, findings: [finding] });
  }
  const nodes = [];
  let at = 0;
  for (const span of spans) {
    nodes.push(points.slice(at, span.start).join(""), mark(points.slice(span.start, span.end).join(""), span.findings));
    at = span.end;
  }
  nodes.push(points.slice(at).join(""));
  return nodes;
}

function mark(text, findings) {
  const worst = ["block", "escalate", "redact", "mask", "hash", "rewrite"].find((action) => findings.some((f) => f.action === action)) ?? "allow";
  const names = [...new Set(findings.map((f) => `${f.guard}: ${readable(f.entity_type)}`))].join(", ");
  return h(`mark.${KINDS[worst]}`, { title: names }, text, h("span.mark-name", null, h("span.sr-only", null, " – "), names));
}

/** Replaced spans of a reply, where they now stand: the replacements are looked for in their order. */
export function placed(text, findings) {
  const points = Array.from(text);
  let from = 0;
  let shift = 0;
  const out = [];
  for (const finding of [...findings].sort((a, b) => a.start - b.start)) {
    if (finding.action === "allow" || finding.action === "log") {
      out.push({ ...finding, start: finding.start + shift, end: finding.end + shift });
      continue;
    }
    const sign = Array.from(`[${finding.entity_type}]`);
    const at = points.findIndex((_, i) => i >= from && sign.every((c, k) => points[i + k] === c));
    if (at < 0) continue;
    out.push({ ...finding, start: at, end: at + sign.length });
    shift = at + sign.length - finding.end;
    from = at + sign.length;
  }
  return out.filter((f) => f.start >= 0 && f.end <= points.length);
}

/** One line a finding. */
export function findingList(findings) {
  return h("ul.stack.tight", null, findings.map((f) => h("li.row", null,
    h(`span.chip.${actionKind(f.action)}`, null, f.action),
    h("span", null, `${f.guard} found ${readable(f.entity_type)}`),
    h("span.soft.small.number", null, `${(100 * f.score).toFixed(0)} % sure`))));
}

/** Guards' times as bars. */
export function guardTimes(guards) {
  const longest = Math.max(...guards.map((g) => g.ms), 0.001);
  return h("table.times", null,
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Guard"), h("th", { scope: "col" }, "On"), h("th", { scope: "col" }, "Time"))),
    h("tbody", null, guards.map((g) => h("tr", null, h("th", { scope: "row" }, g.guard), h("td", null, g.stage ?? ""),
      h("td", null, g.ms > 0 ? [h("meter", { min: 0, max: longest, value: g.ms, "aria-label": `${g.guard} took ${ms(g.ms)}` }), h("span.number", null, ms(g.ms))] : h("span.soft", null, "remembered"))))));
}

export function ms(value) {
  return value < 10 ? `${value.toFixed(2)} ms` : value < 1000 ? `${value.toFixed(0)} ms` : `${(value / 1000).toFixed(2)} s`;
}
