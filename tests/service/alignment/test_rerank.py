"""Reranking through the whole gateway: an engine that gives candidates, a reward server that scores them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from policies.spec import PolicySpec
from tests.fakes.upstream import Behaviour, FakeUpstream, answer, reset_at_once, stall_before_headers, status
from tests.service.alignment.reward_server import choosing, only, said, scoring, writing
from tests.service.conftest import Running, text_of, until

GUARD = "output: [{guard: patterns, patterns: ['zephyr'], action: block}]\n"


def length(text: str) -> list[float]:
    """The longer the reply, the better."""
    return [float(len(text.rpartition("<assistant>")[2]))]


@dataclass
class Reranking:
    """A gateway whose policy `mine` reranks."""

    keel: Running
    reward: FakeUpstream

    async def metric(self, line: str) -> float:
        _, page, _ = await self.keel.get("/metrics")
        values = [row.rsplit(" ", 1)[1] for row in page.decode().splitlines() if row.startswith(line + " ")]
        return float(values[0]) if values else 0.0

    def asked(self, path: str) -> int:
        return sum(request.path == path for request in self.reward.requests)


@pytest.fixture
def reranking(serve: Callable[..., Any]) -> Callable[..., Any]:
    """`async with reranking("n: 3", engine, reward) as r`: a policy with these rerank settings."""

    @contextlib.asynccontextmanager
    async def running(
        settings: str = "n: 3",
        engine: Behaviour | None = None,
        reward: Behaviour | None = None,
        policy: str = "",
        **gateway: Any,
    ) -> AsyncIterator[Reranking]:
        async with FakeUpstream(reward or scoring(length)) as server:
            model = f"{{upstream: {{base_url: '{server.base_url}', model: judge}}}}"
            text = f"{policy}rerank: {{model: {model}, {settings}}}\n"
            async with serve({"mine": text}, **gateway) as keel:
                keel.upstream.default = engine or choosing("a", "ccc c", "bb")
                yield Reranking(keel, server)

    return running


def content(reply: dict[str, Any], index: int = 0) -> str:
    text: str = reply["choices"][index]["message"]["content"]
    return text


async def test_the_best_of_n_is_the_reply_and_its_cost_is_told(reranking: Callable[..., Any]) -> None:
    async with reranking() as r:
        code, reply = await r.keel.chat(model="mine")
        assert (code, content(reply)) == (200, "ccc c")
        assert reply["choices"][0]["index"] == 0
        assert reply["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        told = reply["guardrails"]["rerank"]
        assert told.pop("ms").keys() == {"generate", "score"}
        assert told == {
            "method": "best_of_n",
            "models": ["judge"],
            "candidates": 3,
            "blocked": 0,
            "rounds": 1,
            "tokens": 4,
            "scores": [5.0],
            "refused": 0,
        }
        (asked,) = r.keel.upstream.requests
        assert asked.json["n"] == 3
        assert "stream" not in asked.json
        assert r.asked("/classify") == 1
        assert await r.metric('keel_rerank_candidates_total{model="mine",outcome="chosen"}') == 1
        assert await r.metric('keel_rerank_candidates_total{model="mine",outcome="passed_over"}') == 2
        assert await r.metric('keel_rerank_tokens_total{kind="generated",model="mine"}') == 4
        assert await r.metric('keel_rerank_tokens_total{kind="given",model="mine"}') == 2
        assert await r.metric('keel_reward_score_count{model="mine",which="all"}') == 3


async def test_a_soft_constraint_costs_a_candidate_its_place(reranking: Callable[..., Any]) -> None:
    guard = (
        "output: [{guard: toxicity, model: keel-guard, levels: [{at: 0.5, action: allow, penalty: 100}]}]\n"
    )
    rude = "You are a stupid worthless idiot and I hate you."
    async with reranking(engine=choosing("a", rude, "bb"), policy=guard) as r:
        _, reply = await r.keel.chat(model="mine")
        assert content(reply) == "bb"
        assert reply["guardrails"]["rerank"]["scores"] == [2.0]


async def test_a_stream_gives_what_a_whole_reply_gives(reranking: Callable[..., Any]) -> None:
    async with reranking() as r:
        data = await r.keel.stream(model="mine", stream_options={"include_usage": True})
        chunks = [json.loads(one) for one in data[:-1]]
        assert data[-1] == b"[DONE]"
        assert text_of(chunks[:-1]) == "ccc c"
        assert chunks[-2]["guardrails"]["rerank"]["candidates"] == 3
        assert chunks[-1]["usage"]["completion_tokens"] == 2


async def test_an_engine_that_ignores_n_is_asked_again_with_other_seeds(
    reranking: Callable[..., Any],
) -> None:
    async with reranking(engine=choosing("a", "ccc c", "bb", at_most=1)) as r:
        _, reply = await r.keel.chat(model="mine", seed=7)
        assert content(reply) == "ccc c"
        assert reply["guardrails"]["rerank"]["candidates"] == 3
        assert sorted(request.json["seed"] for request in r.keel.upstream.requests) == [7, 8, 9]


async def test_who_asks_for_several_choices_gets_the_best_of_as_many_groups(
    reranking: Callable[..., Any],
) -> None:
    async with reranking(engine=choosing("a", "ccc c", "bb", "dddd d", "e", "ff")) as r:
        _, reply = await r.keel.chat(model="mine", n=2)
        assert [content(reply, index) for index in (0, 1)] == ["ccc c", "dddd d"]
        assert [choice["index"] for choice in reply["choices"]] == [0, 1]
        assert reply["usage"]["completion_tokens"] == 5  # of the 8 tokens, by length
        assert r.keel.upstream.requests[0].json["n"] == 6
        assert r.asked("/classify") == 1  # all candidates at once


async def test_plain_completions_rerank_each_prompt_for_itself(reranking: Callable[..., Any]) -> None:
    async with reranking(engine=choosing("a", "ccc c", "bb")) as r:
        body = {"model": "mine", "prompt": ["Once", "Twice"]}
        code, reply, _ = await r.keel.post("/v1/completions", body)
        assert code == 200
        assert [choice["text"] for choice in reply["choices"]] == ["ccc c", "ccc c"]
        assert [choice["index"] for choice in reply["choices"]] == [0, 1]
        assert {request.json["prompt"] for request in r.keel.upstream.requests} == {"Once", "Twice"}
        for field, value in (("prompt", [1, 2]), ("best_of", 2)):
            code, reply, _ = await r.keel.post("/v1/completions", {**body, field: value})
            assert (code, reply["error"]["param"]) == (400, field)


async def test_at_temperature_zero_there_is_one_candidate(reranking: Callable[..., Any]) -> None:
    async with reranking("n: 3, temperature: 0.8", engine=choosing("a", "ccc c")) as r:
        _, reply = await r.keel.chat(model="mine", temperature=0)
        assert content(reply) == "a"
        assert r.keel.upstream.requests[0].json["n"] == 1
        assert r.reward.requests == []  # nothing to choose
        await r.keel.chat(model="mine", temperature=0.2)
        assert r.keel.upstream.requests[1].json["temperature"] == 0.8


async def test_candidates_that_a_guard_would_withhold_are_out_before_scoring(
    reranking: Callable[..., Any],
) -> None:
    async with reranking(engine=choosing("a", "the long zephyr", "bb"), policy=GUARD) as r:
        _, reply = await r.keel.chat(model="mine")
        assert (content(reply), reply["choices"][0]["finish_reason"]) == ("bb", "stop")
        assert reply["guardrails"]["status"] == "passed"
        assert reply["guardrails"]["rerank"]["blocked"] == 1
        (scored,) = [request.json["input"] for request in r.reward.requests if request.path == "/classify"]
        assert len(scored) == 2

        r.keel.upstream.default = choosing("one zephyr", "a zephyr", "zephyr")
        _, reply = await r.keel.chat(model="mine")
        assert (content(reply), reply["choices"][0]["finish_reason"]) == ("one ", "content_filter")
        assert reply["guardrails"]["status"] == "blocked"
        assert reply["guardrails"]["rerank"]["blocked"] == 3


async def test_tools_logprobs_and_finish_reasons_survive(reranking: Callable[..., Any]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_around", "arguments": '{"far":true}'}}
    entry = {"token": "b", "logprob": -0.5, "bytes": [98], "top_logprobs": []}
    chosen = {**said("b", finish="tool_calls", tool_calls=[call]), "logprobs": {"content": [entry]}}
    async with reranking(engine=choosing("a", chosen, "bb")) as r:
        _, reply = await r.keel.chat(model="mine", logprobs=True)
        choice = reply["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"] == [call]
        assert choice["logprobs"]["content"] == [entry]
        assert reply["usage"]["completion_tokens"] == 1  # as its log probabilities tell

        chunks = [json.loads(one) for one in (await r.keel.stream(model="mine", logprobs=True))[:-1]]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        calls = [one for delta in deltas for one in delta.get("tool_calls", ())]
        assert calls[0]["function"]["name"] == "look_around"
        assert "".join(one["function"]["arguments"] for one in calls) == '{"far":true}'


async def test_longer_replies_pay_the_length_penalty(reranking: Callable[..., Any]) -> None:
    def of(text: str, tokens: int) -> dict[str, Any]:
        entries = [{"token": "x", "logprob": 0.0, "bytes": [120]}] * tokens
        return {**said(text), "logprobs": {"content": entries}}

    async with reranking("n: 2, length_penalty: 100", engine=choosing(of("cccccc", 4), of("bbbb", 1))) as r:
        _, reply = await r.keel.chat(model="mine")
        assert content(reply) == "bbbb"  # 4 - 1 against 6 - 4
        assert reply["guardrails"]["rerank"]["scores"] == [3.0]


# When the reward can't be had


FAULTS: dict[str, tuple[Behaviour, str]] = {
    "down": (reset_at_once(), "failed"),
    "slow": (stall_before_headers(), "timeout"),
    "broken": (status(400), "failed"),
    "lying": (only("/classify", choosing("no scores"), scoring(length)), "invalid"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_without_scores_the_policy_says_what_follows(reranking: Callable[..., Any], fault: str) -> None:
    behaviour, reason = FAULTS[fault]
    settings = f"n: 3, deadline_ms: {300 if fault == 'slow' else 5000}"
    async with reranking(settings, reward=behaviour, engine=choosing("a", "ccc c", "bb")) as r:
        code, reply = await asyncio.wait_for(r.keel.chat(model="mine"), 10)
        assert (code, content(reply)) == (200, "a")
        assert reply["guardrails"]["rerank"]["error"] == reason
        assert await r.metric(f'keel_rerank_errors_total{{model="mine",reason="{reason}"}}') == 1
    async with reranking(settings + ", on_error: fail", reward=behaviour) as r:
        code, reply = await asyncio.wait_for(r.keel.chat(model="mine"), 10)
        assert (code, reply["error"]["code"]) == (503, "reward_unavailable")


async def test_an_engines_error_is_the_callers_and_a_lost_caller_ends_everything(
    reranking: Callable[..., Any],
) -> None:
    async with reranking(engine=status(400, "no such tool")) as r:
        code, reply = await r.keel.chat(model="mine")
        assert (code, reply["error"]["message"]) == (400, "no such tool")

        r.keel.upstream.default = choosing("a", "b", "c")
        r.reward.default = stall_before_headers()
        asking = asyncio.create_task(r.keel.chat(model="mine"))
        await until(lambda: r.reward.requests)
        asking.cancel()
        await asyncio.wait_for(r.reward.aborted.wait(), 5)


@pytest.mark.parametrize("choices", [[], None, [None], [{"index": 0, "message": None}], "text"])
async def test_an_engine_that_answers_nonsense_is_the_engines_fault(
    reranking: Callable[..., Any], choices: Any
) -> None:
    async with reranking(engine=answer({"choices": choices, "usage": {}})) as r:
        code, reply = await r.keel.chat(model="mine")
        assert (code, reply["error"]["code"]) == (502, "upstream_error")


# The other methods


async def test_soft_best_of_n_draws_by_the_exponential_of_the_score(reranking: Callable[..., Any]) -> None:
    async with reranking("method: soft_best_of_n, n: 2, softness: 2.0", engine=choosing("a", "ccc")) as r:
        drawn: Counter[str] = Counter()
        for seed in range(80):
            _, reply = await r.keel.chat(model="mine", seed=seed)
            drawn[content(reply)] += 1
        # exp(3/2) / (exp(1/2) + exp(3/2)) = 0.731, of 80: 58 ± 12 is three standard deviations.
        assert 46 <= drawn["ccc"] <= 70
        first = [content((await r.keel.chat(model="mine", seed=3))[1]) for _ in range(5)]
        assert len(set(first)) == 1


async def test_adaptive_stops_at_the_first_batch_that_is_good_enough(reranking: Callable[..., Any]) -> None:
    settings = "method: adaptive, n: 5, first: 2, accept: 3"
    async with reranking(settings, engine=choosing("aaaa", "b")) as r:
        _, reply = await r.keel.chat(model="mine")
        told = reply["guardrails"]["rerank"]
        assert (content(reply), told["rounds"], told["candidates"]) == ("aaaa", 1, 2)

        r.keel.upstream.default = choosing("a", "b", "c", "dddd")
        _, reply = await r.keel.chat(model="mine", seed=1)
        told = reply["guardrails"]["rerank"]
        assert (content(reply), told["rounds"], told["candidates"]) == ("dddd", 2, 4)
        assert [request.json["seed"] for request in r.keel.upstream.requests[1:]] == [1, 3]

        r.keel.upstream.default = choosing("a", "bb")
        _, reply = await r.keel.chat(model="mine")
        told = reply["guardrails"]["rerank"]
        assert (content(reply), told["rounds"], told["candidates"]) == ("bb", 3, 5)


async def test_adaptive_goes_on_only_for_the_choices_that_need_it(reranking: Callable[..., Any]) -> None:
    settings = "method: adaptive, n: 4, first: 2, accept: 3"
    async with reranking(settings, engine=choosing("a", "cccc", "b", "b", "dddd", "e")) as r:
        _, reply = await r.keel.chat(model="mine", n=2)
        assert [content(reply, index) for index in (0, 1)] == ["cccc", "dddd"]
        assert [request.json["n"] for request in r.keel.upstream.requests] == [4, 2]


FOUR = ("a a a a a a a a", "b bb b b b b b b", "cc ccc c c c c c c", "dddd dd d d dddd d d d")


async def test_speculative_rejection_finishes_only_what_began_best(reranking: Callable[..., Any]) -> None:
    settings = "method: speculative_rejection, n: 4, block_tokens: 4"
    long = [" ".join([one] * 3) for one in FOUR]
    async with reranking(settings, engine=writing(*long)) as r:
        _, reply = await r.keel.chat(model="mine", seed=1)
        told = reply["guardrails"]["rerank"]
        assert content(reply) == long[3]
        assert reply["choices"][0]["finish_reason"] == "stop"
        assert reply["usage"]["completion_tokens"] == 24
        assert (told["method"], told["candidates"], told["rounds"]) == ("speculative_rejection", 4, 3)
        assert told["tokens"] == 4 * 4 + 2 * 4 + 16  # against 96 of all four
        first, *others = r.keel.upstream.requests
        assert (first.json["n"], first.json["max_tokens"]) == (4, 4)
        assert [request.json.get("max_tokens") for request in others] == [4, 4, None]
        whole = await r.keel.stream(model="mine")
        assert text_of([json.loads(one) for one in whole[:-1]]) == long[3]


async def test_speculative_rejection_keeps_to_the_callers_limit(reranking: Callable[..., Any]) -> None:
    settings = "method: speculative_rejection, n: 4, block_tokens: 4"
    async with reranking(settings, engine=writing(*FOUR)) as r:
        for limit in (2, 5, 6):
            _, reply = await r.keel.chat(model="mine", max_tokens=limit)
            assert content(reply).split() == FOUR[3].split()[:limit]
            assert reply["choices"][0]["finish_reason"] == "length"
            assert reply["usage"]["completion_tokens"] == limit


async def test_a_stop_word_is_seen_across_the_place_where_a_reply_was_cut(
    reranking: Callable[..., Any],
) -> None:
    settings = "method: speculative_rejection, n: 2, block_tokens: 4"
    async with reranking(settings, engine=writing("a b c d e f g", "x y z")) as r:
        _, reply = await r.keel.chat(model="mine", stop=["d e"])
        assert content(reply) == "a b c "
        assert reply["choices"][0]["finish_reason"] == "stop"


async def test_what_can_only_be_said_whole_is_the_best_of_n_and_told_so(
    reranking: Callable[..., Any],
) -> None:
    settings = "method: speculative_rejection, n: 3"
    async with reranking(settings, engine=choosing("a", "ccc c", "bb")) as r:
        _, reply = await r.keel.chat(model="mine", response_format={"type": "json_object"})
        assert content(reply) == "ccc c"
        assert reply["guardrails"]["rerank"]["method"] == "best_of_n"
        thinking = said("bb", finish="length", reasoning="so far")
        r.keel.upstream.default = choosing("a", thinking, "c")
        _, reply = await r.keel.chat(model="mine")
        assert (content(reply), reply["guardrails"]["rerank"]["method"]) == ("bb", "best_of_n")


async def test_speculative_rejection_drops_what_a_guard_withholds_and_survives_lost_scores(
    reranking: Callable[..., Any],
) -> None:
    settings = "method: speculative_rejection, n: 4, block_tokens: 4, deadline_ms: 300"
    texts = (*FOUR[:3], "zephyr " + FOUR[3])
    async with reranking(settings, engine=writing(*texts), policy=GUARD) as r:
        _, reply = await r.keel.chat(model="mine")
        assert content(reply) == FOUR[2]
        assert reply["guardrails"]["rerank"]["blocked"] == 1
        r.reward.default = stall_before_headers()
        _, reply = await asyncio.wait_for(r.keel.chat(model="mine"), 10)
        assert content(reply) == FOUR[0]
        assert reply["guardrails"]["rerank"]["error"] == "timeout"


async def test_below_the_threshold_the_policy_may_refuse(reranking: Callable[..., Any]) -> None:
    settings = "method: adaptive, n: 4, first: 2, accept: 9, below: refuse"
    async with reranking(settings, engine=choosing("a", "bb"), policy="refusal: Sorry.\n") as r:
        _, reply = await r.keel.chat(model="mine")
        assert (content(reply), reply["choices"][0]["finish_reason"]) == ("Sorry.", "content_filter")
        assert reply["guardrails"]["rerank"]["refused"] == 1
        assert reply["usage"]["completion_tokens"] == 0
        assert await r.metric('keel_rerank_refused_total{model="mine"}') == 1
        # One candidate at temperature 0 must reach the threshold too.
        _, reply = await r.keel.chat(model="mine", temperature=0)
        assert content(reply) == "Sorry."


def test_rules_about_the_whole_reply_do_not_go_with_a_reply_in_pieces() -> None:
    policy: dict[str, Any] = {
        "name": "mine",
        "model": {"checkpoint": "demo-chat"},
        "constraints": [{"ban": ["x"]}, {"require": ["y"]}],
        "rerank": {"model": "judge", "method": "speculative_rejection"},
    }
    with pytest.raises(ValueError, match="written in pieces"):
        PolicySpec.model_validate(policy)
    PolicySpec.model_validate({**policy, "rerank": {"model": "judge"}})
