// How experiments stand, and what to do about them.

import { get, post } from "./api.js";
import { armClass, intervals, spoken } from "./chart.js";
import { ago, ask, empty, failure, h, loading, pageHead, replace, toast } from "./dom.js";
import { readable } from "./findings.js";

const STATES = {
  starting: ["accent", "starting"], running: ["accent", "running"], waiting: ["warn", "waits for approval"], completed: ["good", "ramp completed"],
  promoted: ["good", "promoted"], rolled_back: ["bad", "rolled back"], stopped: ["", "stopped"],
};
const LIVE = ["running", "waiting", "completed"];
const ACTIONS = { approve: "Approved.", promote: "Promoted.", rollback: "Rolled back.", stop: "Stopped.", ramp: "The ramp begins anew." };
const REFRESH_MS = 15000;

export async function show(main) {
  const { experiments, refused, errors } = await get("/admin/v1/experiments");
  const head = pageHead("Experiments", "Arms, and what is known of each. Intervals hold however often you look.");
  const notes = Object.entries(refused).map(([name, why]) => h("p.note.bad", null, h("strong", null, name), ` is not served as it was applied: ${why}`));
  notes.push(...errors.map((error) => h("p.note.bad", null, "A file is not served as it says: ", h("code", null, error))));
  if (!experiments.length) {
    replace(main, head, ...notes, empty("experiments", "No experiment runs", "An experiment is a file that names its arms: give it to 'keel experiments apply', or put it under 'experiments' in the gateway's settings."));
    return undefined;
  }
  const detail = h("section.stack", { "aria-label": "Experiment" });
  const page = { name: null, metric: null, detail };
  const buttons = experiments.map((one) => h("button.choice", { type: "button", "aria-pressed": "false", onclick: () => choose(one.name) },
    h("strong", null, one.name), h("span.soft.small", null, STATES[one.status]?.[1] ?? one.status)));
  const choose = (name) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(experiments[i].name === name)));
    page.name = name;
    replace(detail, loading());
    return draw(page);
  };
  replace(main, head, ...notes, experiments.length > 1 ? h("div.split", null, h("nav.stack.tight", { "aria-label": "Experiments" }, buttons), detail) : detail);
  await choose(experiments[0].name);
  const timer = setInterval(() => {
    if (document.visibilityState === "visible" && !document.querySelector("dialog[open]") && !detail.contains(document.activeElement)) draw(page);
  }, REFRESH_MS);
  return () => clearInterval(timer);
}

async function draw(page) {
  const { name } = page;
  try {
    const experiment = await get(`/admin/v1/experiments/${encodeURIComponent(name)}`);
    if (page.name !== name) return; // another was chosen meanwhile
    if (!experiment.metrics.includes(page.metric)) [page.metric] = experiment.metrics;
    replace(page.detail, summary(experiment, page), figures(experiment, page), history(experiment.history));
  } catch (error) {
    if (page.name === name) replace(page.detail, failure(error, () => draw(page)));
  }
}

function summary(experiment, page) {
  const [kind, word] = STATES[experiment.status] ?? ["", experiment.status];
  const alarm = experiment.look?.mismatch?.alarm;
  return h("div.card.stack", null,
    h("div.row.spread", null, h("h2", null, experiment.name), h(kind ? `span.chip.${kind}` : "span.chip", null, word)),
    experiment.description ? h("p.soft", null, experiment.description) : null,
    h("p.soft.small", null, experiment.path ? `From ${experiment.path}.` : "Applied by the admin API.", experiment.scorer ? ` Rewards by ${scorer(experiment.scorer)}.` : ""),
    experiment.fault ? h("p.note.bad", null, experiment.fault) : null,
    alarm ? h("p.note.bad", null, "Units don't come to the arms as planned (sample ratio mismatch): don't rely on these figures before you know why.") : null,
    experiment.reason ? h("p.note", null, experiment.reason) : null,
    h("ul.shares", { "aria-label": "Shares" }, experiment.arms.map((arm, i) => h("li", null,
      h("div.row.spread", null, h("span.row", null, swatch(i), h("strong", null, arm.name), h("span.soft", null, `policy ${arm.policy}`), arm.name === experiment.control ? h("span.chip", null, "control") : null), h("span.number", null, percent(arm.share))),
      h("progress", { max: 1, value: arm.share, "aria-label": `${arm.name} gets ${percent(arm.share)}` })))),
    ramp(experiment), bounds(experiment.look), actions(experiment, page));
}

function ramp(experiment) {
  if (!experiment.ramp || !LIVE.includes(experiment.status)) return null;
  const { steps, step, approve, waits_for: waits } = experiment.ramp;
  return h("div.stack.tight", null,
    h("ol.steps", { "aria-label": "Ramp" }, steps.map((share, i) => h(i < step ? "li.done" : i === step ? "li.now" : "li", { "aria-current": i === step ? "step" : null }, `${share} %`, approve.includes(share) ? h("span.sr-only", null, " needs approval") : null))),
    waits.length ? h("p.help", null, `The next step waits for ${waits.join("; ")}.`) : null);
}

function bounds(look) {
  const rows = [...(look?.limits ?? []).map((one) => ["limit", one]), ...(look?.gates ?? []).map((one) => ["gate", one])];
  if (!rows.length) return null;
  const word = { crossed: ["bad", "crossed"], within: ["good", "within"], open: ["", "not known yet"] };
  return h("ul.stack.tight", { "aria-label": "Limits and gates" }, rows.map(([what, one]) => h("li.row", null, h(word[one.state][0] ? `span.chip.${word[one.state][0]}` : "span.chip", null, word[one.state][1]), h("span", null, `${what} for ${one.arm}: ${one.bound}`), h("span.soft.small.number", null, spoken(one, short)))));
}

function actions(experiment, page) {
  const act = async (action, title, text, { arms = null, kind = "primary", step = null } = {}) => {
    const body = h("div.stack", null, h("p", null, text),
      arms && h("div.field", null, h("label", { for: "arm" }, "Arm"), h("select", { id: "arm", name: "arm" }, arms.map((arm) => h("option", { value: arm }, arm)))),
      h("div.field", null, h("label", { for: "reason" }, "Why"), h("textarea", { id: "reason", name: "reason", rows: 2, maxlength: 500 })));
    const answer = await ask(title, body, title, kind);
    if (!answer) return;
    try {
      await post(`/admin/v1/experiments/${encodeURIComponent(experiment.name)}/${action}`, { reason: answer.reason, ...(answer.arm ? { arm: answer.arm } : {}), ...(step ? { step } : {}) });
      toast(ACTIONS[action]);
    } catch (error) {
      toast(error.message);
    }
    await draw(page);
  };
  const live = LIVE.includes(experiment.status);
  const coming = experiment.ramp?.steps[experiment.ramp.step + 1];
  const others = experiment.arms.map((arm) => arm.name).filter((name) => name !== experiment.control);
  return h("div.row", null,
    experiment.status === "waiting" && h("button.primary", { type: "button", onclick: () => act("approve", "Approve the next step", `${coming} % of the units go to ${experiment.ramp.arm}.`, { step: experiment.ramp.step + 2 }) }, `Approve ${coming} %`),
    live && h(experiment.status === "completed" ? "button.primary" : "button", { type: "button", onclick: () => act("promote", "Promote", "All traffic goes to this arm.", { arms: others }) }, "Promote"),
    live && h("button.danger", { type: "button", onclick: () => act("rollback", "Roll back", `All traffic goes back to ${experiment.control}.`, { kind: "danger" }) }, "Roll back"),
    live && h("button.quiet", { type: "button", onclick: () => act("stop", "Stop", `The experiment ends, and ${experiment.control} answers.`, { kind: "danger" }) }, "Stop"),
    !live && experiment.status !== "starting" && h("button", { type: "button", onclick: () => act("ramp", "Begin anew", "It begins again from the first step.") }, "Begin anew"));
}

function figures(experiment, page) {
  const look = experiment.look;
  if (!look) return h("div.card", null, h("h2", null, "Figures"), h("p.help", null, "The first look is yet to come."));
  const names = look.arms.map((arm) => arm.name);
  const format = formatOf(page.metric);
  const choose = h("select", { id: "metric", onchange: (event) => { page.metric = event.target.value; draw(page); } }, experiment.metrics.map((name) => h("option", { value: name }, readable(name))));
  choose.value = page.metric;
  const looks = experiment.looks.length ? experiment.looks : [look];
  return h("div.card.stack", null,
    h("div.row.spread", null, h("h2", null, "Figures"), h("div.row", null, h("label", { for: "metric" }, "Metric"), h("div", null, choose))),
    h("figure.stack.tight", null,
      h("figcaption.row.small", null, names.map((name, i) => h("span.row", null, swatch(i), name))),
      intervals(looks, names, (arm) => arm.metrics[page.metric] ?? {}, { label: readable(page.metric), format })),
    names.length > 1 && h("figure.stack.tight", null, h("figcaption.small.soft", null, `Difference from ${experiment.control}; the line is no difference`),
      intervals(looks, names.slice(1), (arm) => arm.against_control?.[page.metric] ?? {}, { label: `Difference in ${readable(page.metric)}`, format, zero: true, first: 1 })),
    h("div.scroll-x", { tabindex: 0, role: "region", "aria-label": "Arms" }, h("table", null,
      h("thead", null, h("tr", null, ["Arm", "Units", "Requests", readable(page.metric), "Against the control"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", null, [...look.arms, ...look.shadows].map((arm) => h("tr", null, h("th", { scope: "row" }, arm.name), h("td", null, arm.units), h("td", null, arm.requests), h("td", null, spoken(arm.metrics[page.metric], format)), h("td", null, arm.against_control?.[page.metric] ? spoken(arm.against_control[page.metric], format) : "–")))))),
    segments(look, page.metric, format),
    h("p.help", null, `Looked at ${ago(look.at)}. Intervals hold at all looks at once with ${percent(1 - experiment.alpha)}, for each metric.`));
}

function segments(look, metric, format) {
  const rows = Object.entries(look.segments).filter(([, values]) => values.length > 1).flatMap(([dimension, values]) =>
    values.flatMap(({ value, arms }) => arms.filter((arm) => arm.metrics[metric]).map((arm) => h("tr", null, h("th", { scope: "row" }, `${readable(dimension)}: ${readable(value)}`), h("td", null, arm.name), h("td", null, arm.units), h("td", null, spoken(arm.metrics[metric], format))))));
  return rows.length > 0 && h("details", null, h("summary", null, "By kind of request"), h("div.scroll-x", { tabindex: 0, role: "region", "aria-label": "Segments" }, h("table", null,
    h("thead", null, h("tr", null, ["Segment", "Arm", "Units", readable(metric)].map((name) => h("th", { scope: "col" }, name)))), h("tbody", null, rows))));
}

function history(events) {
  if (!events?.length) return null;
  return h("details.card", null, h("summary", null, "History"), h("ol.stack.tight", null, events.map((event) => h("li", null, h("strong", null, readable(event.action)), ` by ${event.actor}, ${ago(event.at)}`, event.reason ? h("p.soft.small", null, event.reason) : null))));
}

function scorer({ model }) {
  return [model].flat().map((one) => one.upstream?.model ?? one).join(", ");
}

function swatch(i) {
  return h("span", { class: `swatch ${armClass(i)}`, "aria-hidden": "true" });
}

function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

function short(value) {
  return Number(value.toPrecision(3)).toString();
}

function formatOf(metric) {
  if (metric.endsWith("_rate")) return (value) => `${(100 * value).toFixed(1)} %`;
  if (metric.startsWith("duration") || metric.startsWith("first_token")) return (value) => (Math.abs(value) < 1 ? `${(1000 * value).toFixed(0)} ms` : `${value.toFixed(2)} s`);
  return short;
}
