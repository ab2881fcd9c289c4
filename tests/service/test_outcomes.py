"""Each generation's outcome is told once, with the id that the client saw, on every path that it may take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.outcomes import Outcome
from tests.fakes import upstream as fake
from tests.fakes.upstream import FakeUpstream
from tests.service.alignment.reward_server import choosing, scoring
from tests.service.conftest import Running, Serve, chunks_of, until

GUARDED = r"""
input: [{guard: patterns, label: in, patterns: ['zephyr'], action: block}]
output:
  - {guard: patterns, label: ssn, patterns: [{name: SSN, regex: '\d{3}-\d{2}-\d{4}'}], action: redact}
  - {guard: patterns, label: out, patterns: ['secret'], action: block}
"""


def listening(keel: Running) -> list[Outcome]:
    heard: list[Outcome] = []
    keel.gateway.outcomes.subscribe(heard.append)
    return heard


async def ask(keel: Running, stream: bool, text: str = "Hello", model: str = "plain") -> tuple[str, str]:
    """The reply's id and text."""
    if stream:
        chunks = await chunks_of(keel, text=text, model=model)
        said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        return chunks[0]["id"], said
    status, answer = await keel.chat(text, model=model)
    assert status == 200
    return answer["id"], answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["plain", "guarded"])
async def test_a_reply_is_told_with_the_clients_id_and_its_measures(
    serve: Serve, stream: bool, model: str
) -> None:
    async with serve({"guarded": GUARDED}) as keel:
        heard = listening(keel)
        name, text = await ask(keel, stream, model=model)
        await until(lambda: heard)
    (outcome,) = heard
    assert outcome.completion_id == name
    assert outcome.request_id.startswith("req-")
    assert (outcome.kind, outcome.policy, outcome.stream) == ("chat", model, stream)
    assert (outcome.state, outcome.status, outcome.action, outcome.error) == (
        "finished",
        "passed",
        "allow",
        None,
    )
    assert outcome.characters == len(text)
    if not (stream and model == "plain"):  # this engine tells no usage in streams
        assert outcome.tokens_in > 0
        assert outcome.tokens_out > 0
    assert 0 < outcome.duration_s < 60
    assert (outcome.first_token_s is not None) is stream
    assert outcome.policy_digest == keel.gateway.catalog.get(model).policy.digest
    assert outcome.experiment is None


@pytest.mark.parametrize("stream", [False, True])
async def test_findings_are_counted_and_not_repeated(serve: Serve, stream: bool) -> None:
    async with serve({"guarded": GUARDED}) as keel:
        said = "It is 123-45-6789 or 999-99-9999."
        keel.upstream.default = fake.stream([said]) if stream else fake.answer(fake.completion(said))
        heard = listening(keel)
        await ask(keel, stream, model="guarded")
        await until(lambda: heard)
    (outcome,) = heard
    assert outcome.findings == {("ssn", "SSN", "redact", "output"): 2}
    assert (outcome.state, outcome.status, outcome.action) == ("finished", "modified", "redact")
    assert "6789" not in repr(outcome)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_blocked_reply(serve: Serve, stream: bool) -> None:
    async with serve({"guarded": GUARDED}) as keel:
        said = "It is secret."
        keel.upstream.default = fake.stream([said]) if stream else fake.answer(fake.completion(said))
        heard = listening(keel)
        name, text = await ask(keel, stream, model="guarded")
        await until(lambda: heard)
    (outcome,) = heard
    assert (outcome.completion_id, outcome.characters) == (name, len(text))
    assert (outcome.state, outcome.status, outcome.action) == ("blocked", "blocked", "block")


async def test_a_blocked_request_has_findings_and_no_id(serve: Serve) -> None:
    async with serve({"guarded": GUARDED}) as keel:
        heard = listening(keel)
        status, _ = await keel.chat("zephyr", model="guarded")
        assert status == 400
    (outcome,) = heard
    assert (outcome.completion_id, outcome.characters) == ("", 0)
    assert (outcome.state, outcome.status, outcome.error) == ("blocked", "blocked", "content_filter")
    assert [key[0] for key in outcome.findings] == ["in"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_has_the_id_that_was_made_for_it(serve: Serve, stream: bool) -> None:
    async with serve({"guarded": GUARDED + "on_input_block: refuse\nrefusal: No.\n"}) as keel:
        heard = listening(keel)
        name, text = await ask(keel, stream, text="zephyr", model="guarded")
        await until(lambda: heard)
    (outcome,) = heard
    assert outcome.completion_id == name
    assert (outcome.characters, text) == (3, "No.")


@pytest.mark.parametrize("model", ["plain", "guarded"])
async def test_failures_and_clients_who_leave(serve: Serve, model: str) -> None:
    async with serve({"guarded": GUARDED}, engine={"first_token_timeout_s": 30}) as keel:
        heard = listening(keel)
        keel.upstream.default = fake.status(400)
        await keel.chat(model=model)
        keel.upstream.default = fake.stall_before_headers()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await keel.chat(model=model)
        await until(lambda: len(heard) == 2)
    assert [outcome.state for outcome in heard] == ["failed", "aborted"]
    assert heard[0].error


@pytest.mark.parametrize("stream", [False, True])
async def test_rewards_of_a_policy_that_reranks(serve: Serve, stream: bool) -> None:
    async with FakeUpstream(scoring(lambda text: [float(text.count("c"))])) as server:
        model = f"{{upstream: {{base_url: '{server.base_url}', model: judge}}}}"
        async with serve({"mine": f"rerank: {{model: {model}, n: 3}}\n"}) as keel:
            keel.upstream.default = choosing("a", "ccc", "bb")
            heard = listening(keel)
            name, text = await ask(keel, stream, model="mine")
            await until(lambda: heard)
    (outcome,) = heard
    assert (outcome.completion_id, outcome.characters, text) == (name, 3, "ccc")
    assert outcome.reward == 3.0


async def test_observers_choose_and_leave_and_harm_nobody(serve: Serve) -> None:
    async with serve({"other": ""}) as keel:
        outcomes, heard = keel.gateway.outcomes, list[str]()

        def broken(_: Outcome) -> None:
            raise ZeroDivisionError

        asked: list[Any] = []
        outcomes.subscribe(broken, lambda generation: generation.served.name == "other")
        stop = outcomes.subscribe(lambda outcome: heard.append(outcome.policy), asked.append)
        await keel.chat()
        assert heard == []
        assert asked[0].tally is None
        stop()
        outcomes.subscribe(
            lambda outcome: heard.append(outcome.policy), lambda generation: generation.served.name == "other"
        )
        await keel.chat(model="other")
        await keel.chat()
        assert heard == ["other"]
