"""Tenants through the whole gateway: whose key it is decides which variant of a policy answers."""

from __future__ import annotations

import json
from pathlib import Path

from service.auth import KeyFile
from tests.fakes import upstream as fake
from tests.service.conftest import Serve

POLICY = r"""
output: [{guard: patterns, label: words, words: [zephyr], action: block}]
adjustable: [{setting: output.words.action, one_of: [block, redact]}, {setting: output.words.replacement}]
"""
ACME = """\
tenant: acme
keys: [acme-web]
policies: {mine: {output.words.action: redact, output.words.replacement: "(a word)"}}
"""
ADMIN = "an-admin-key-of-32-characters-xx"


async def test_the_key_decides_and_the_reply_says_so(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "tenants").mkdir()
    (tmp_path / "tenants" / "acme.yaml").write_text(ACME)
    keys = KeyFile(tmp_path / "state" / "keys.json")
    acme, other = keys.create("acme-web"), keys.create("other")
    async with serve({"mine": POLICY}, tenants=[tmp_path / "tenants"], admin_key=ADMIN) as keel:
        keel.upstream.default = fake.answer(fake.completion("It is zephyr."))

        async def ask(key: str, model: str = "mine") -> tuple[int, dict[str, object]]:
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
            bearer = {"authorization": f"Bearer {key}"}
            status, answer, _ = await keel.post("/v1/chat/completions", body, bearer)
            return status, answer

        status, answer = await ask(acme)
        assert answer["choices"][0]["message"]["content"] == "It is (a word)."  # type: ignore[index]
        assert answer["guardrails"]["policy"]["tenant"] == "acme"  # type: ignore[index]
        status, answer = await ask(other)
        assert answer["choices"][0]["finish_reason"] == "content_filter"  # type: ignore[index]
        assert "tenant" not in answer["guardrails"]["policy"]  # type: ignore[index]
        status, _ = await ask(other, "mine#acme")
        assert status == 404
        checked = {"model": "mine", "input": "zephyr", "stage": "output"}
        _, answer, _ = await keel.post("/v1/checks", checked, {"authorization": f"Bearer {acme}"})
        assert answer["results"][0]["content"] == "(a word)"
        _, page, _ = await keel.get("/v1/models", {"authorization": f"Bearer {acme}"})
        assert b"#" not in page
        _, page, _ = await keel.get("/admin/v1/policies", {"authorization": f"Bearer {ADMIN}"})
        assert b'"tenant":"acme"' in page
        _, page, _ = await keel.get("/admin/v1/policies/mine%23acme", {"authorization": f"Bearer {ADMIN}"})
        shown = json.loads(page)
        assert (shown["name"], shown["tenant"], "(a word)" in shown["yaml"]) == ("mine", "acme", True)


KEEPING = """
feedback: {store: text}
adjustable: [{setting: feedback.store}, {setting: refusal}]
"""
PRIVATE = """\
tenant: acme
keys: [acme-web]
policies: {mine: {feedback.store: none}}
"""


async def test_what_a_tenant_lets_be_kept_is_the_tenants_to_say(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "tenants").mkdir()
    file = tmp_path / "tenants" / "acme.yaml"
    file.write_text(PRIVATE)
    keys = KeyFile(tmp_path / "state" / "keys.json")
    acme, other = ({"authorization": f"Bearer {keys.create(name)}"} for name in ("acme-web", "other"))
    async with serve({"mine": KEEPING}, tenants=[tmp_path / "tenants"], admin_key=ADMIN) as keel:
        asked = {"model": "mine", "messages": [{"role": "user", "content": "hi"}]}
        for number, (who, left_out) in enumerate(((other, []), (acme, ["comment"]))):
            keel.upstream.default = fake.answer({**fake.completion("Hello."), "id": f"chatcmpl-{number}"})
            _, answer, _ = await keel.post("/v1/chat/completions", asked, who)
            said = {"completion_id": answer["id"], "thumb": "up", "comment": "Between us."}
            _, receipt, _ = await keel.post("/v1/feedback", said, who)
            assert receipt["not_stored"] == left_out
        # A variant that is not there any more leaves its replies to the strictest of what is.
        file.write_text(PRIVATE.replace("none}", "none, refusal: No.}"))
        status, _, _ = await keel.post("/admin/v1/policies/reload", {}, {"authorization": f"Bearer {ADMIN}"})
        assert status == 200
        _, receipt, _ = await keel.post("/v1/feedback", said, acme)
        assert receipt["not_stored"] == ["comment"]
