"""Critique and revision through the whole gateway, with an upstream that plays model, judge and reviser."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from policies.constitution import Constitution
from policies.critique import critique_schema
from service.alignment.build import StrategyError
from tests.fakes import upstream as fake
from tests.fakes.upstream import FakeUpstream
from tests.service.alignment.roles import (
    FINE,
    Judgement,
    Troupe,
    case_in,
    says,
    violates,
    words_are_violations,
)
from tests.service.conftest import Running, Serve, chunks_of, events, finish_of, text_of, until

ALWAYS = "revise: {constitution: harmless, when: always}\n"
SSN = r"""
output:
  - {guard: patterns, label: ssn, patterns: [{name: SSN, regex: '\b\d{3}-\d{2}-\d{4}\b'}], action: redact}
  - {guard: patterns, label: word, patterns: ['(?i)zephyr'], action: block}
"""
RUDE = "You fool, go away."
RUDENESS = violates("no-abuse", evidence="You fool")


def policy(**settings: Any) -> str:
    return f"revise: {json.dumps({'constitution': 'harmless', 'when': 'always', **settings})}\n"


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """What `guardrails.revise` says of the only choice."""
    (choice,) = answer["guardrails"]["revise"]["choices"]
    assert isinstance(choice, dict)
    return choice


def content_of(answer: dict[str, Any]) -> str:
    content: str = answer["choices"][0]["message"]["content"]
    return content


async def metric(keel: Running, line: str) -> bool:
    return line in (await keel.get("/metrics"))[1].decode()


async def test_a_reply_that_violates_nothing_goes_out_as_it_is(serve: Serve) -> None:
    async with serve({"kind": ALWAYS}) as keel:
        keel.upstream.default = troupe = Troupe()
        _, answer = await keel.chat(model="kind")
        assert content_of(answer) == "A first reply."
        assert answer["guardrails"]["status"] == "passed"
        assert told(answer) == {"index": 0, "outcome": "compliant", "rounds": 0, "violated": []}
        assert [part for part, _ in troupe.asked] == ["model", "judge"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_violation_is_revised_and_the_revision_is_criticised(serve: Serve, stream: bool) -> None:
    async with serve({"kind": ALWAYS}) as keel:
        keel.upstream.default = troupe = Troupe(
            model=[RUDE], judge=[RUDENESS, FINE], reviser=["Good day to you."]
        )
        if stream:
            chunks = await chunks_of(keel, model="kind", stream_options={"include_usage": True})
            assert text_of(chunks) == "Good day to you."
            assert finish_of(chunks) == ["stop"]
            answer, usage = chunks[-2], chunks[-1]["usage"]
        else:
            _, answer = await keel.chat(model="kind")
            assert content_of(answer) == "Good day to you."
            usage = answer["usage"]
        assert told(answer) == {
            "index": 0,
            "outcome": "revised",
            "rounds": 1,
            "violated": ["no-abuse"],
            "left": [],
        }
        assert answer["guardrails"]["status"] == "modified"
        assert usage == {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        revise = answer["guardrails"]["revise"]
        assert revise["tokens"]["judge"] == {"prompt_tokens": 22, "completion_tokens": 14}
        assert revise["tokens"]["reviser"] == {"prompt_tokens": 11, "completion_tokens": 7}
        assert [part for part, _ in troupe.asked] == ["model", "judge", "reviser", "judge"]
        assert "fool" not in json.dumps(answer)
        assert await metric(keel, 'keel_revise_replies_total{model="kind",outcome="revised"} 1.0')
        assert await metric(keel, 'keel_revise_violations_total{model="kind",principle="no-abuse"} 1.0')


async def test_what_judge_and_reviser_are_asked(serve: Serve) -> None:
    """The judge is held to the constitution's form; the reviser keeps to the caller's limits."""
    async with serve({"kind": ALWAYS}) as keel:
        keel.upstream.default = troupe = Troupe(model=[RUDE], judge=[RUDENESS, FINE])
        fields = {"max_tokens": 30, "temperature": 0.3, "logprobs": True, "tools": [], "seed": 4}
        await keel.chat("How are you?", model="kind", **fields)
        judge, reviser = troupe.bodies("judge")[0], troupe.bodies("reviser")[0]
        form = judge["response_format"]["json_schema"]
        assert form["strict"] is True
        assert form["schema"] == critique_schema(Constitution.load("harmless"))
        assert judge["temperature"] == 0
        assert case_in(judge) == {
            "conversation": [{"role": "user", "content": "How are you?"}],
            "reply": {"content": RUDE},
        }
        assert {key: reviser[key] for key in ("max_tokens", "temperature", "seed")} == {
            "max_tokens": 30,
            "temperature": 0.3,
            "seed": 4,
        }
        assert not {"logprobs", "tools", "stream", "n"} & set(reviser)
        assert "without insult" in reviser["messages"][0]["content"]


@pytest.mark.parametrize(
    ("unresolved", "outcome", "text"),
    [("refuse", "refused", "I can't help with that."), ("block", "blocked", ""), ("best", "best", "Second.")],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_becomes_of_a_reply_that_violates_to_the_last(
    serve: Serve, unresolved: str, outcome: str, text: str, stream: bool
) -> None:
    """The best is the version with the least to say against it."""
    judgements = [violates("no-crime", "no-abuse"), violates("no-abuse", severity="low"), RUDENESS]
    async with serve({"kind": policy(unresolved=unresolved)}) as keel:
        keel.upstream.default = Troupe(model=["First."], reviser=["Second.", "Third."], judge=[*judgements])
        if stream:
            chunks = await chunks_of(keel, model="kind")
            answer, said, finish = chunks[-1], text_of(chunks), finish_of(chunks)[0]
        else:
            _, answer = await keel.chat(model="kind")
            said, finish = content_of(answer), answer["choices"][0]["finish_reason"]
        assert said == text
        assert finish == ("stop" if unresolved == "best" else "content_filter")
        assert told(answer)["outcome"] == outcome
        assert told(answer)["rounds"] == 2
        assert told(answer)["left"] == ["no-abuse"]
        assert answer["guardrails"]["status"] == ("modified" if unresolved == "best" else "blocked")


@pytest.mark.parametrize(
    "nonsense",
    [
        "No violations found!",
        '{"violations": ["no-abuse"]}',
        violates("be-nice"),
        says("", tool_calls=[]),
        fake.answer({"choices": []}),
        fake.answer({"error": "none"}),
        fake.status(400),
        fake.raw_bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{"),
    ],
)
@pytest.mark.parametrize("on_error", ["block", "keep"])
async def test_a_judge_that_talks_nonsense_or_dies_passes_nothing(
    serve: Serve, nonsense: Any, on_error: str
) -> None:
    async with serve({"kind": policy(on_error=on_error)}) as keel:
        keel.upstream.default = Troupe(judge=[nonsense])
        _, answer = await keel.chat(model="kind")
        assert told(answer)["outcome"] == ("failed" if on_error == "block" else "kept")
        assert told(answer)["violated"] is None, "nobody has said that nothing is violated"
        (failure,) = answer["guardrails"]["failures"]
        assert failure["guard"] == "revise"
        assert failure["reason"] == told(answer)["error"]
        assert content_of(answer) == ("" if on_error == "block" else "A first reply.")
        assert answer["guardrails"]["status"] == ("blocked" if on_error == "block" else "passed")
        assert answer["choices"][0]["finish_reason"] == ("content_filter" if on_error == "block" else "stop")
        error = told(answer)["error"]
        assert await metric(keel, f'keel_revise_errors_total{{model="kind",reason="{error}"}} 1.0')


async def test_a_second_answer_that_is_no_nonsense_counts(serve: Serve) -> None:
    async with serve({"kind": ALWAYS}) as keel:
        keel.upstream.default = troupe = Troupe(judge=["   \n\n\n", FINE])
        _, answer = await keel.chat(model="kind")
        assert told(answer)["outcome"] == "compliant"
        assert troupe.bodies("judge")[1]["temperature"] > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_judge_that_stalls_is_given_up_at_the_deadline(serve: Serve, stream: bool) -> None:
    async with serve({"kind": policy(deadline_ms=150)}) as keel:
        keel.upstream.default = Troupe(judge=[fake.stall_before_headers()])
        if stream:
            answer = (await chunks_of(keel, model="kind"))[-1]
        else:
            _, answer = await keel.chat(model="kind")
        assert told(answer)["error"] == "timeout"
        assert told(answer)["outcome"] == "failed"
        await until(keel.upstream.aborted.is_set)


@pytest.mark.parametrize("reviser", ["   ", fake.status(500), fake.stall_before_headers()])
async def test_a_known_violation_does_not_go_out_because_the_reviser_failed(
    serve: Serve, reviser: Any
) -> None:
    """`on_error: keep` is for replies that nobody could criticise."""
    async with serve({"kind": policy(on_error="keep", deadline_ms=400)}) as keel:
        keel.upstream.default = Troupe(model=[RUDE], judge=[RUDENESS], reviser=[reviser])
        _, answer = await keel.chat(model="kind")
        assert content_of(answer) == "I can't help with that."
        assert told(answer)["outcome"] == "refused"
        assert told(answer)["error"] in ("nonsense", "upstream", "timeout")


async def test_who_goes_away_takes_the_judge_along(serve: Serve) -> None:
    async with serve({"kind": ALWAYS}) as keel:
        keel.upstream.default = troupe = Troupe(judge=[fake.stall_before_headers()])
        asking = asyncio.create_task(keel.chat(model="kind"))
        await until(lambda: troupe.bodies("judge"))
        asking.cancel()
        await until(keel.upstream.aborted.is_set)
        assert len(troupe.asked) == 2


async def test_who_streams_hears_comments_while_the_judge_thinks(serve: Serve) -> None:
    async def slow(exchange: fake.Exchange) -> None:
        await asyncio.sleep(0.3)
        await says(json.dumps(FINE))(exchange)

    async with serve({"kind": ALWAYS}, limits={"comment_every_s": 0.05}) as keel:
        keel.upstream.default = Troupe(judge=[slow])
        body = {"model": "kind", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        async with keel.session.post(keel.url + "/v1/chat/completions", json=body) as response:
            raw = await response.read()
        comments, _, rest = raw.rpartition(b": keep-alive\n\n")
        assert comments.count(b": keep-alive\n\n") >= 2
        assert text_of([json.loads(data) for data in events(rest)[:-1]]) == "A first reply."


async def test_flagged_replies_alone_are_criticised(serve: Serve) -> None:
    """A finding is enough, `allow` included; what a guard would have blocked gets a chance to be mended."""
    flagged = (
        policy(when="flagged") + SSN + "  - {guard: patterns, label: see, patterns: [fool], action: allow}\n"
    )
    async with serve({"kind": flagged}) as keel:
        keel.upstream.default = troupe = Troupe(
            model=["Hello.", RUDE, "Project Zephyr!"],
            judge=words_are_violations(["fool", "Zephyr"], "no-abuse"),
            reviser=["Good day."],
        )
        _, answer = await keel.chat(model="kind")
        assert answer["guardrails"]["revise"]["choices"] == []
        assert troupe.bodies("judge") == []
        assert await metric(keel, 'keel_revise_replies_total{model="kind",outcome="unexamined"} 1.0')
        for _ in range(2):
            _, answer = await keel.chat(model="kind")
            assert content_of(answer) == "Good day."
            assert told(answer)["outcome"] == "revised"


async def test_a_share_of_the_replies_is_sampled(serve: Serve) -> None:
    rare, all_ = policy(when="sampled", share=1e-9), policy(when="sampled", share=1)
    async with serve({"rare": rare, "all": all_}) as keel:
        keel.upstream.default = troupe = Troupe()
        await keel.chat(model="rare")
        assert troupe.bodies("judge") == []
        await keel.chat(model="all")
        assert len(troupe.bodies("judge")) == 1


async def test_another_policys_model_or_any_server_may_judge(serve: Serve) -> None:
    async with FakeUpstream() as other:
        other.default = elsewhere = Troupe(judge=[FINE])
        server = {"base_url": f"{other.base_url}/v1", "model": "big"}
        policies = {
            "by-server": policy(judge={"upstream": server}),
            "by-policy": policy(judge={"policy": "referee"}),
            "referee": f"model: {{upstream: {json.dumps(server)}}}\n",
        }
        async with serve(policies) as keel:
            keel.upstream.default = here = Troupe()
            for name, label in (("by-server", "big"), ("by-policy", "policy referee")):
                _, answer = await keel.chat(model=name)
                assert told(answer)["outcome"] == "compliant"
                assert answer["guardrails"]["revise"]["judge"] == label
            assert [body["model"] for body in elsewhere.bodies("judge")] == ["big", "big"]
            assert here.bodies("judge") == []


async def test_a_judge_that_is_not_there_is_told_before_anything_is_served(
    serve: Serve, tmp_path: Path
) -> None:
    with pytest.raises(StrategyError, match="its judge is the policy 'gone', which isn't there"):
        async with serve({"kind": policy(judge={"policy": "gone"})}):
            pass
    async with serve({"kind": policy(judge={"policy": "plain"}), "open": ""}) as keel:
        (tmp_path / "policies" / "plain.yaml").unlink()
        assert not (await keel.gateway.reload_policies()).ok
        keel.upstream.default = Troupe()
        _, answer = await keel.chat(model="kind")
        assert told(answer)["outcome"] == "compliant", "everything stays as it was"


async def test_every_choice_is_settled_on_its_own(serve: Serve) -> None:
    async with serve({"kind": ALWAYS}) as keel:
        payload = fake.completion("Hello.")
        payload["choices"] = [
            {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for i, text in enumerate(["Hello.", RUDE, "Bye."])
        ]
        payload["usage"] = {"prompt_tokens": 5, "completion_tokens": 30, "total_tokens": 35}
        keel.upstream.default = Troupe(
            model=[fake.answer(payload)],
            judge=words_are_violations(["fool"], "no-abuse"),
            reviser=["Good day."],
        )
        _, answer = await keel.chat(model="kind", n=3)
        assert [c["message"]["content"] for c in answer["choices"]] == ["Hello.", "Good day.", "Bye."]
        outcomes = [choice["outcome"] for choice in answer["guardrails"]["revise"]["choices"]]
        assert outcomes == ["compliant", "revised", "compliant"]
        assert 7 < answer["usage"]["completion_tokens"] < 30
        assert answer["usage"]["total_tokens"] == 5 + answer["usage"]["completion_tokens"]


async def test_a_revision_leaves_nothing_of_the_reply_that_it_mends(serve: Serve) -> None:
    """Its reasoning, its calls and its log probabilities would tell what it said."""
    async with serve({"kind": ALWAYS}) as keel:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"fool": 1}'}}
        model = says(RUDE, reasoning="the fool", tool_calls=[call])
        keel.upstream.default = troupe = Troupe(model=[model], judge=[RUDENESS, FINE])
        _, answer = await keel.chat(model="kind", logprobs=True)
        assert "fool" not in json.dumps(answer)
        shown = case_in(troupe.bodies("judge")[0])["reply"]
        assert shown["reasoning"] == "the fool"
        assert shown["tool_calls"] == [call]


async def test_plain_completions_are_revised_too(serve: Serve) -> None:
    def plain(*texts: str) -> fake.Behaviour:
        choices = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts)]
        return fake.answer({"id": "cmpl-1", "object": "text_completion", "choices": choices})

    async with serve({"kind": ALWAYS}) as keel:
        keel.upstream.default = troupe = Troupe(
            model=[plain("fine", "a fool")],
            judge=words_are_violations(["fool"], "no-abuse"),
            reviser=["well"],
        )
        body = {"model": "kind", "prompt": ["One", "Two"]}
        _, answer, _ = await keel.post("/v1/completions", body)
        assert [choice["text"] for choice in answer["choices"]] == ["fine", "well"]
        asked = [case_in(one)["conversation"][0]["content"] for one in troupe.bodies("judge")]
        assert sorted(asked) == ["One", "Two", "Two"]
        status, answer, _ = await keel.post("/v1/completions", {"model": "kind", "prompt": [1, 2]})
        assert (status, answer["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize(("expose", "shown"), [("none", False), ("summary", False), ("findings", True)])
async def test_summary_tells_what_the_policy_exposes(serve: Serve, expose: str, shown: bool) -> None:
    async with serve({"kind": ALWAYS + f"expose: {expose}\n"}) as keel:
        keel.upstream.default = Troupe(model=[RUDE], judge=[RUDENESS, FINE])
        _, answer = await keel.chat(model="kind")
        assert ("no-abuse" in json.dumps(answer)) is shown
        assert ("guardrails" in answer) is (expose != "none")


async def test_masked_values_are_shown_to_no_judge(serve: Serve) -> None:
    masking = "input:\n  - {guard: patterns, label: mail, builtin: [EMAIL_ADDRESS], action: mask}\n"
    async with serve({"kind": ALWAYS + masking}) as keel:
        keel.upstream.default = troupe = Troupe(
            model=["You fool <EMAIL_ADDRESS_1>"], judge=[RUDENESS, FINE], reviser=["Dear <EMAIL_ADDRESS_1>"]
        )
        _, answer = await keel.chat("I am ann@example.com", model="kind")
        assert content_of(answer) == "Dear ann@example.com"
        assert "ann@example.com" not in json.dumps([body for _, body in troupe.asked])


SECRET_WORDS = ["123-45-6789", "ZEPHYR", "zephyr", "987-65-4321"]


@pytest.mark.parametrize("seed", range(6))
async def test_the_final_text_never_misses_a_guard(serve: Serve, seed: int) -> None:
    """Whatever model, judge and reviser say, and however it ends: no secret reaches a caller."""
    draw = random.Random(seed)

    def text() -> str:
        words = ["some", "words", "fool", *draw.sample(SECRET_WORDS, draw.randint(0, 3))]
        draw.shuffle(words)
        return " ".join(words)

    def judgement(_: str) -> Any:
        return draw.choice([FINE, RUDENESS, "nonsense", violates("no-crime", "no-abuse", evidence="zephyr")])

    judge: Judgement = judgement
    policies = {
        f"p{i}": SSN
        + policy(
            when=draw.choice(["always", "flagged"]),
            unresolved=draw.choice(["best", "refuse", "block"]),
            on_error=draw.choice(["keep", "block"]),
            rounds=draw.choice([1, 3]),
        )
        for i in range(4)
    }
    async with serve(policies) as keel:
        keel.upstream.default = Troupe(
            model=[text() for _ in range(40)], reviser=[text() for _ in range(99)], judge=judge
        )
        for name in policies:
            for stream in (False, True):
                if stream:
                    raw = b"".join(await keel.stream(model=name))
                else:
                    raw = json.dumps((await keel.chat(model=name))[1]).encode()
                assert not any(word.encode() in raw for word in SECRET_WORDS), raw


async def test_a_custom_tools_call_is_looked_at_before_it_is_criticised(serve: Serve) -> None:
    call = {"id": "1", "type": "custom", "custom": {"name": "run", "input": "zephyr"}}
    async with serve({"kind": policy(when="flagged") + SSN}) as keel:
        keel.upstream.default = troupe = Troupe(model=[says("", tool_calls=[call])], judge=[RUDENESS, FINE])
        _, answer = await keel.chat(model="kind")
        assert case_in(troupe.bodies("judge")[0])["reply"]["tool_calls"] == [call]
        assert content_of(answer) == "A better reply."
