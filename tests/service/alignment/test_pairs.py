"""Revised pairs as preference data: what is kept, for whom it is fit, and what never gets into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.alignment.pairs import Pair
from tests.service.alignment.roles import FINE, Troupe, violates
from tests.service.conftest import Running, Serve
from training.data.feedback import read_feedback
from training.data.preferences import Preference

STORING = "revise: {constitution: harmless, when: always, store: true}\n"
PII = "output:\n  - {guard: pii, ner: none, entities: [EMAIL_ADDRESS], action: allow}\n"
RUDE = violates("no-abuse")


def stored(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "state").rglob("revised-*.jsonl"))


async def revised(keel: Running, model: str, *turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    """One reply of which the first version, "A first reply.", is revised."""
    keel.upstream.default = Troupe(judge=[RUDE, FINE], reviser=["Write to ann@example.com, a better reply."])
    messages = [{"role": role, "content": content} for role, content in turns]
    _, answer, _ = await keel.post("/v1/chat/completions", {"model": model, "messages": messages, **fields})
    assert answer["guardrails"]["revise"]["choices"][0]["outcome"] == "revised"
    assert isinstance(answer, dict)
    return answer


async def test_nothing_is_kept_unless_the_policy_says_so(serve: Serve, tmp_path: Path) -> None:
    async with serve({"kind": "revise: {constitution: harmless, when: always}\n"}) as keel:
        await revised(keel, "kind", ("user", "Hi"))
    assert stored(tmp_path) == []


async def test_pairs_are_read_by_training_as_preferences(serve: Serve, tmp_path: Path) -> None:
    async with serve({"kind": STORING}) as keel:
        await revised(keel, "kind", ("user", "Hi"), stream=False)
        talk = (("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Well?"))
        await revised(keel, "kind", *talk)
        keel.upstream.default = Troupe()
        await keel.chat(model="kind")  # nothing to revise, nothing to learn
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_revise_pairs_total{model="kind",outcome="stored"} 2.0' in page
    (path,) = stored(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    first, second = read_feedback(path).preferences
    assert isinstance(first, Preference)
    assert (first.chosen, first.rejected) == ("Write to ann@example.com, a better reply.", "A first reply.")
    assert (first.objective, first.rater) == ("harmless", "judge: self")
    assert [turn.content for turn in second.prompt] == ["Be kind.", "Hi", "Yes?", "Well?"]


async def test_personal_data_stays_out_whatever_the_guard_does_to_replies(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve({"kind": STORING + PII}) as keel:
        answer = await revised(keel, "kind", ("user", "I am bob@example.org."))
        assert "ann@example.com" in answer["choices"][0]["message"]["content"], "the guard's action is allow"
    (path,) = stored(tmp_path)
    row = json.loads(path.read_text())
    assert row["prompt"] == "I am <EMAIL_ADDRESS>."
    assert row["chosen"] == "Write to <EMAIL_ADDRESS>, a better reply."


async def test_a_pair_that_cannot_be_written_costs_no_reply(serve: Serve, tmp_path: Path) -> None:
    async with serve({"kind": STORING}) as keel:
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "preferences").write_text("in the way")
        await revised(keel, "kind", ("user", "Hi"))
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_revise_pairs_total{model="kind",outcome="failed"} 1.0' in page


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "a"), ("user", "b")],
        [("user", "a"), ("assistant", "b")],
        [("user", "a"), ("system", "b"), ("user", "c")],
        [("user", " ")],
        [("tool", "a")],
    ],
)
def test_conversations_that_training_cannot_use_are_unfit(turns: list[tuple[str, str]]) -> None:
    conversation = [{"role": role, "content": content} for role, content in turns]
    assert not Pair(conversation, "before", "after", "harmless", "self", "chat@0").fit


def test_replies_that_do_not_differ_are_no_pair() -> None:
    said = [{"role": "user", "content": "Hi"}]
    assert Pair(said, "before", "after", "harmless", "self", "chat@0").fit
    assert not Pair(said, "same", " same", "harmless", "self", "chat@0").fit
    assert not Pair(said, "", "after", "harmless", "self", "chat@0").fit
    called = [{"role": "user", "content": "Hi", "tool_calls": [{}]}]
    assert not Pair(called, "before", "after", "harmless", "self", "chat@0").fit
