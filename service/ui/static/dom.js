// Elements from code. Text is only ever set as text: nothing here, and nothing in these pages, parses markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** `h("p.soft", {id: "x", onclick: f}, "text", otherNode)`. Classes follow the tag's name after dots. */
export function h(tag, props, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  return fill(node, props, children);
}

/** The same for SVG. */
export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

export function replace(parent, ...children) {
  parent.replaceChildren(...children.flat(Infinity).filter(Boolean));
}

const PATHS = {
  playground: "M4 5h16v11H9l-5 4z",
  compare: "M4 5h6v14H4zM14 5h6v14h-6z",
  reviews: "M5 4h14v16H5zM8.5 12l2.5 2.5 4.5-5",
  experiments: "M9 4h6M10 4v6l-5 9h14l-5-9V4",
  policies: "M12 3l7 3v6c0 4.5-3 7.5-7 9-4-1.5-7-4.5-7-9V6z",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
  up: "M7 11l4-7c1.5 0 2.5 1 2.2 2.6L12.600 10H18c1.500 0 2.200 1.200 1.900 2.400l-1.300 5.200c-.3 1-1 1.400-1.900 1.400H7zM3.500 11H7v8H3.500z",
  down: "M7 13l4 7c1.500 0 2.500-1 2.200-2.600L12.600 14H18c1.500 0 2.200-1.200 1.900-2.400l-1.300-5.200c-.3-1-1-1.400-1.900-1.400H7zM3.500 13H7V5H3.500z",
  send: "M4 12l16-8-6 16-3-6z",
  stop: "M7 7h10v10H7z",
  leave: "M10 4H5v16h5M14 8l4 4-4 4M18 12H9",
};

/** A drawn sign, hidden from screen readers: words stand beside it or in the button's label. */
export function icon(name) {
  const shape = s("path", { d: PATHS[name], fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "stroke-linejoin": "round" });
  return s("svg", { viewBox: "0 0 24 24", width: 20, height: 20, "aria-hidden": "true", focusable: "false" }, shape);
}

export function pageHead(title, text, ...controls) {
  return h("div.page-head", null, h("div", null, h("h1", { tabindex: -1 }, title), text && h("p", null, text)), controls.length ? h("div.row", null, controls) : null);
}

export function loading(what = "Loading") {
  return h("div.loading", { role: "status" }, h("span.spinner", { "aria-hidden": "true" }), `${what}…`);
}

export function empty(sign, title, text, ...actions) {
  return h("div.card.empty", null, icon(sign), h("h2", null, title), text && h("p", null, text), actions.length ? h("div.row", null, actions) : null);
}

/** What went wrong, and a way to try again. */
export function failure(error, again) {
  const retry = again && h("button", { type: "button", onclick: again }, "Try again");
  return h("div.note.bad.stack.tight", { role: "alert" }, h("p", null, error.message), retry && h("div", null, retry));
}

export function toast(text) {
  const node = h("div.toast", null, text);
  document.getElementById("toasts").append(node);
  setTimeout(() => node.remove(), 4000);
}

/** A question before something that others will notice. Resolves to the form's values, or null. */
export function ask(title, body, confirm, kind = "primary") {
  return new Promise((resolve) => {
    const form = h("form.stack", { method: "dialog" }, h("h2", { id: "ask-title" }, title), body, h("div.row", null,
      h(`button.${kind}`, { type: "submit", value: "yes" }, confirm),
      h("button", { type: "submit", value: "", formnovalidate: true }, "Cancel")));
    const dialog = h("dialog", { "aria-labelledby": "ask-title" }, form);
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes" ? Object.fromEntries(new FormData(form)) : null);
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Whether a key press is meant for the page and not for a field or a dialog. A key that is held down is one. */
export function isShortcut(event) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return false;
  return !event.target.closest("input, select, textarea, [contenteditable]");
}

export function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  if (past < 60) return "just now";
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (past >= length) return new Intl.RelativeTimeFormat("en", { numeric: "auto" }).format(-Math.floor(past / length), unit);
  }
  return "";
}
