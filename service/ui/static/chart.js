// A metric's intervals over time, an arm a colour: a band from low to high, and a line along the estimates.

import { h, s } from "./dom.js";

// As many units as there are pixels, about, so that letters keep their size.
const WIDTH = matchMedia("(max-width: 46rem)").matches ? 400 : 960;
const HEIGHT = 260;
const EDGE = { left: 56, right: 12, top: 12, bottom: 28 };

/** The classes that colour the i-th arm; there are four colours, and dashes for the next four. */
export function armClass(i) {
  return `arm-${(i % 4) + 1}${i % 8 > 3 ? " dashed" : ""}`;
}

/** `looks`: [{at, arms: [{name, metrics}]}]; `read` takes an arm's row to its interval {estimate, low, high}.
    `first` is the number of the first of `names` among all arms, for its colour. */
export function intervals(looks, names, read, { label, format, zero = false, first = 0 }) {
  const series = names.map((name) => looks.map((look) => {
    const arm = look.arms.find((one) => one.name === name);
    return { at: look.at, ...(arm ? read(arm) : {}) };
  }).filter((point) => Number.isFinite(point.estimate)));
  const points = series.flat();
  if (!points.length) return h("p.help", null, "Nothing is known of this yet.");
  const known = points.flatMap((point) => [point.low, point.high, point.estimate].filter(Number.isFinite));
  let [bottom, top] = [Math.min(...known, ...(zero ? [0] : [])), Math.max(...known, ...(zero ? [0] : []))];
  if (top - bottom < 1e-9) [bottom, top] = [bottom - 0.5 * Math.abs(bottom || 1), top + 0.5 * Math.abs(top || 1)];
  const times = points.map((point) => point.at);
  const [from, until] = [Math.min(...times), Math.max(...times)];
  const x = (at) => EDGE.left + (WIDTH - EDGE.left - EDGE.right) * (until > from ? (at - from) / (until - from) : 0.5);
  const y = (value) => EDGE.top + (HEIGHT - EDGE.top - EDGE.bottom) * (1 - (Math.min(top, Math.max(bottom, value)) - bottom) / (top - bottom));
  const shapes = series.flatMap((line, i) => drawn(line, armClass(first + i), x, y, bottom, top));
  const ticks = [bottom, (bottom + top) / 2, top].flatMap((value) => [
    s("line", { x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(value), y2: y(value), class: "grid" }),
    s("text", { x: EDGE.left - 8, y: y(value) + 4, "text-anchor": "end" }, format(value))]);
  const ends = [[from, "start"], [until, "end"]].map(([at, anchor]) => s("text", { x: x(at), y: HEIGHT - 8, "text-anchor": until > from ? anchor : "middle" }, clock(at)));
  const base = zero ? [s("line", { x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(0), y2: y(0), class: "zero" })] : [];
  const told = names.map((name, i) => `${name}: ${spoken(series[i].at(-1), format)}`).join("; ");
  return s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img", "aria-label": `${label} over time. At the last look, ${told}.` }, ticks, base, shapes, until > from ? ends : ends[0]);
}

function drawn(line, colour, x, y, bottom, top) {
  if (!line.length) return [];
  const low = (point) => (Number.isFinite(point.low) ? point.low : bottom);
  const high = (point) => (Number.isFinite(point.high) ? point.high : top);
  if (line.length === 1) {
    const [point] = line;
    return [s("line", { x1: x(point.at), x2: x(point.at), y1: y(low(point)), y2: y(high(point)), class: `band-line ${colour}` }),
      s("circle", { cx: x(point.at), cy: y(point.estimate), r: 4, class: `dot ${colour}` })];
  }
  const upper = line.map((point) => `${x(point.at).toFixed(1)},${y(high(point)).toFixed(1)}`);
  const lower = line.map((point) => `${x(point.at).toFixed(1)},${y(low(point)).toFixed(1)}`).reverse();
  const middle = line.map((point) => `${x(point.at).toFixed(1)},${y(point.estimate).toFixed(1)}`);
  return [s("polygon", { points: [...upper, ...lower].join(" "), class: `band ${colour}` }), s("polyline", { points: middle.join(" "), class: `line ${colour}` })];
}

export function spoken(interval, format) {
  if (!interval || !Number.isFinite(interval.estimate)) return "nothing known";
  const bound = (value) => (Number.isFinite(value) ? format(value) : "?");
  return `${format(interval.estimate)} (${bound(interval.low)} to ${bound(interval.high)})`;
}

function clock(at) {
  return new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" }).format(at * 1000);
}
