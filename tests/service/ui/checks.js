// What tests ask of a page, in the page: the body of a function (checks.py).

// Elements that people act on without a name, and structure that screen readers go by.
const faults = () => {
  const faults = [];
  const shown = (e) => e.checkVisibility({visibilityProperty: true});
  const text = (e) => (e.textContent || "").trim();
  const name = (e) => {
    if (e.getAttribute("aria-label")) return e.getAttribute("aria-label").trim();
    const by = e.getAttribute("aria-labelledby");
    if (by) return by.split(" ").map((id) => text(document.getElementById(id) ?? {})).join(" ").trim();
    if (e.labels?.length) return [...e.labels].map(text).join(" ").trim();
    if (e.matches("button, a, summary")) return text(e) || e.querySelector("img[alt]")?.alt || "";
    return "";
  };
  const say = (what, e) => faults.push(`${what}: ${e.outerHTML.slice(0, 120)}`);
  for (const e of document.querySelectorAll("button, a[href], input, select, textarea, summary, meter, [role=slider], [role=img]"))
    if (shown(e) && !name(e)) say("no name", e);
  for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) say("no alt", e);
  for (const e of document.querySelectorAll("svg:not([role])")) if (e.getAttribute("aria-hidden") !== "true") say("drawing without a role", e);
  for (const e of document.querySelectorAll("th")) if (!e.scope) say("th without scope", e);
  for (const e of document.querySelectorAll("[aria-describedby], [aria-controls]"))
    for (const id of `${e.getAttribute("aria-describedby") ?? ""} ${e.getAttribute("aria-controls") ?? ""}`.trim().split(/\s+/))
      if (!document.getElementById(id)) say(`no element ${id}`, e);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) faults.push(`id ${id} twice`);
  const levels = [...document.querySelectorAll("h1, h2, h3")].filter(shown).map((e) => Number(e.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1) faults.push(`h1: ${levels}`);
  levels.reduce((before, level) => { if (level > before + 1) faults.push(`a heading level is skipped: ${levels}`); return level; }, 0);
  if (document.documentElement.lang !== "en") faults.push("no language");
  if (document.querySelectorAll("main").length !== 1) faults.push("main");
  return faults;
};

// Elements that are wider than the screen, and targets that a finger can't hit (WCAG 2.5.8: 24 px).
const narrow = () => {
  const faults = [];
  if (document.documentElement.scrollWidth > innerWidth) faults.push(`the page is ${document.documentElement.scrollWidth} wide`);
  for (const e of document.querySelectorAll("button, nav a, select, input, summary")) {
    const box = e.getBoundingClientRect();
    if (box.width && e.type !== "checkbox" && e.type !== "radio" && (box.height < 24 || box.width < 24)) faults.push(`small: ${e.outerHTML.slice(0, 100)}`);
  }
  return faults;
};

// Where the focus is, and whether that can be seen.
const focus = () => {
  const e = document.activeElement;
  const style = getComputedStyle(e);
  const ring = (node) => getComputedStyle(node).outlineStyle !== "none" && parseFloat(getComputedStyle(node).outlineWidth) >= 2;
  const box = e.getBoundingClientRect();
  return {name: `${e.tagName} ${e.getAttribute("aria-label") ?? e.textContent.trim().slice(0, 40)}`,
          body: e === document.body, ring: ring(e) || !!e.closest(".composer") && ring(e.closest(".composer")),
          seen: box.width > 0 && style.visibility === "visible"};
};

// Tab then goes on from before everything else.
const start = () => {
  const start = document.createElement("span");
  start.tabIndex = -1;
  document.body.prepend(start);
  start.focus();
  start.remove();
};

return { faults, narrow, focus, start };
