// Log in with a key that `keel keys create` made.

import { login } from "./api.js";
import { h, replace } from "./dom.js";

export function show(main, { who, go, setSession }) {
  const key = h("input", { id: "key", name: "key", type: "password", autocomplete: "current-password", required: true, spellcheck: "false", "aria-describedby": "key-help key-error" });
  const error = h("p.note.bad", { id: "key-error", role: "alert", hidden: true });
  const button = h("button.primary", { type: "submit" }, "Log in");
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    error.hidden = true;
    try {
      const session = await login(key.value);
      setSession(session);
      await go(session.pages[0]);
    } catch (problem) {
      error.textContent = problem.message;
      error.hidden = false;
      button.disabled = false;
      key.select();
    }
  };
  replace(main, h("div.card.stack.login", null,
    h("div.stack.tight", null, h("h1", { tabindex: -1 }, "Log in"), h("p.soft", null, "With the key of an admin, a rater or an application.")),
    h("form.stack", { onsubmit: submit },
      h("div.field", null, h("label", { for: "key" }, "Key"), key,
        h("p.help", { id: "key-help" }, "An admin makes one with ", h("code", null, "keel keys create NAME --role rater"), ". It stays in this browser for twelve hours at most.")),
      error, h("div.row", null, button, who.role ? h("a", { href: `/ui/${who.pages[0]}` }, "Go on without") : null))));
}
