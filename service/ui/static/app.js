// Which page is shown, to whom; the bar above it.

import * as api from "./api.js";
import { empty, failure, h, icon, loading, pageHead, replace } from "./dom.js";

const TITLES = { playground: "Playground", compare: "Compare", reviews: "Reviews", experiments: "Experiments", policies: "Policies" };
const main = document.getElementById("main");
const bar = document.getElementById("bar");
let who = { role: null, pages: [] };
let leave = () => {};
let shown = "";

function current() {
  return location.pathname.replace(/^\/ui\/?/, "").replace(/\/$/, "");
}

export function go(page) {
  history.pushState(null, "", `/ui/${page}`);
  return show();
}

async function show() {
  leave();
  leave = () => {};
  let page = current();
  if (!who.role || page === "login") page = "login";
  else if (!who.pages.includes(page)) page = who.pages[0];
  if (page !== current()) history.replaceState(null, "", `/ui/${page}`);
  shown = location.pathname;
  document.title = `${TITLES[page] ?? "Log in"} – Keel`;
  if (who.role && !who.pages.length) {
    replace(main, pageHead("Nothing here"), empty("leave", "This key has no pages", "Log out, and log in with another."));
    drawBar("");
    return;
  }
  main.className = page === "playground" || page === "login" ? "narrow" : "";
  drawBar(page);
  replace(main, loading());
  try {
    const module = await import(`./${page}.js`);
    leave = (await module.show(main, { who, go, setSession })) ?? leave;
  } catch (error) {
    replace(main, failure(error, show));
  }
  main.querySelector("h1")?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

export function setSession(session) {
  who = session;
}

function drawBar(page) {
  const links = who.pages.map((name) => h("li", null, h("a", { href: `/ui/${name}`, "aria-current": name === page ? "page" : null }, icon(name), TITLES[name])));
  const theme = h("button.quiet.icon", { type: "button", onclick: () => { window.keelTheme.toggle(); drawBar(page); document.getElementById("theme").focus(); }, id: "theme", "aria-label": window.keelTheme.dark ? "Use light colours" : "Use dark colours" }, icon(window.keelTheme.dark ? "sun" : "moon"));
  const out = who.name
    ? h("button.quiet.icon", { type: "button", "aria-label": `Log out ${who.name}`, title: `Log out ${who.name}`, onclick: logOut }, icon("leave"))
    : page !== "login" && h("a", { href: "/ui/login" }, "Log in");
  replace(bar,
    h("a.brand", { href: "/ui" }, h("img", { src: "/ui/static/keel.svg", alt: "" }), "Keel"),
    h("nav", { "aria-label": "Pages", hidden: !links.length }, h("ul", null, links)),
    h("div.who", null, theme, out));
}

async function logOut() {
  await api.logout();
  setSession(await api.session());
  await go("login");
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/ui']");
  if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  history.pushState(null, "", link.getAttribute("href"));
  show();
});
addEventListener("popstate", () => {
  if (location.pathname !== shown) show(); // not for a jump within the page
});

replace(main, loading());
try {
  setSession(await api.session());
  await show();
} catch (error) {
  replace(main, failure(error, () => location.reload()));
}
