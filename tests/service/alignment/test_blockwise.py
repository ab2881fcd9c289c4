"""Blockwise best of n: the first block is with the caller before the second is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from policies.alignment import RerankSpec
from tests.fakes.upstream import Behaviour, Exchange, stall_before_headers, status
from tests.service.alignment.reward_server import said, scoring, writing
from tests.service.alignment.test_rerank import GUARD, content, reranking
from tests.service.conftest import text_of

__all__ = ["reranking"]  # a fixture

SETTINGS = "method: blockwise, n: 2, block_tokens: 4"
TEXTS = ("a a a a a a a a a a", "b b b b bbb b b b b b")


def tree(*blocks: tuple[str, str], finish: str = "stop") -> Behaviour:
    """Each block has two continuations, whatever came before; behind the last one the reply ends."""

    async def behave(exchange: Exchange) -> None:
        asked = exchange.request.json
        going_on = bool(asked.get("continue_final_message"))
        before = asked["messages"][-1]["content"] if going_on else ""
        level = before.count("|")
        last = level == len(blocks) - 1
        choices = [
            said(blocks[level][index], index, finish if last else "length") for index in range(asked["n"])
        ]
        usage = {"prompt_tokens": 5, "completion_tokens": 4 * asked["n"]}
        reply = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 1, "model": "fake"}
        await exchange.reply(200, json.dumps({**reply, "choices": choices, "usage": usage}).encode())

    return behave


BLOCKS = (("no |", "well done |"), ("yes it is |", "is |"), ("end", "at last"))
BEST = "well done |yes it is |at last"


async def test_each_block_is_the_best_continuation_of_what_was_sent(reranking: Callable[..., Any]) -> None:
    async with reranking(SETTINGS, engine=tree(*BLOCKS)) as r:
        _, reply = await r.keel.chat(model="mine", seed=1)
        assert content(reply) == BEST
        assert reply["choices"][0]["finish_reason"] == "stop"
        told = reply["guardrails"]["rerank"]
        assert (told["method"], told["rounds"], told["candidates"]) == ("blockwise", 3, 6)
        assert told["tokens"] == 24
        assert reply["usage"]["completion_tokens"] < 24
        assert [request.json["seed"] for request in r.keel.upstream.requests] == [1, 3, 5]

        data = await r.keel.stream(model="mine", stream_options={"include_usage": True})
        chunks = [json.loads(one) for one in data[:-1]]
        assert data[-1] == b"[DONE]"
        assert text_of(chunks[:-1]) == BEST
        texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks[:-1]]
        assert [text for text in texts if text] == ["well done |", "yes it is |", "at last"]
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-2]["guardrails"]["rerank"]["rounds"] == 3
        assert chunks[-1]["usage"] == reply["usage"]


async def test_the_first_block_arrives_while_the_second_is_written(reranking: Callable[..., Any]) -> None:
    async with reranking(SETTINGS) as r:
        r.keel.upstream.script(tree(*BLOCKS))
        r.keel.upstream.default = stall_before_headers()
        body = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        async with r.keel.session.post(r.keel.url + "/v1/chat/completions", json=body) as response:
            line = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5)
            assert text_of([json.loads(line[6:])]) == "well done |"
        await asyncio.wait_for(r.keel.upstream.aborted.wait(), 5)  # the caller went away


async def test_several_choices_grow_beside_one_another(reranking: Callable[..., Any]) -> None:
    async with reranking(SETTINGS, engine=writing(*TEXTS)) as r:
        _, reply = await r.keel.chat(model="mine", n=2)
        assert {content(reply, index) for index in (0, 1)} <= set(TEXTS)
        chunks = [json.loads(one) for one in (await r.keel.stream(model="mine", n=2))[:-1]]
        for index in (0, 1):
            assert text_of(chunks, index) in TEXTS
            ends = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
            assert [end for end in ends if end] == ["stop"]


@pytest.mark.parametrize("stream", [False, True])
async def test_guards_choose_first_and_have_the_last_word(
    reranking: Callable[..., Any], stream: bool
) -> None:
    async def ask() -> tuple[str, str]:
        if not stream:
            _, reply = await r.keel.chat(model="mine")
            return content(reply), reply["choices"][0]["finish_reason"]
        chunks = [json.loads(one) for one in (await r.keel.stream(model="mine"))[:-1]]
        return text_of(chunks), chunks[-1]["choices"][0]["finish_reason"]

    async with reranking(SETTINGS, policy=GUARD) as r:
        r.keel.upstream.default = tree(("the zephyr |", "ok |"), ("fine", "no"))
        assert await ask() == ("ok |fine", "stop")
        r.keel.upstream.default = tree(("the ok |", "ok |"), ("zephyr one |", "zephyr"), ("end", "end"))
        assert await ask() == ("the ok |", "content_filter")


async def test_a_stop_word_that_two_blocks_share_is_never_sent(reranking: Callable[..., Any]) -> None:
    async with reranking(SETTINGS, engine=tree(("a |EN", "a |"), ("DING more|", "DING|"))) as r:
        chunks = [json.loads(one) for one in (await r.keel.stream(model="mine", stop="ENDING"))[:-1]]
        assert text_of(chunks) == "a |"
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_without_scores_the_reply_goes_on_as_one(reranking: Callable[..., Any]) -> None:
    settings = SETTINGS + ", deadline_ms: 300"
    two = tree(BLOCKS[0], ("and all the rest", "is"))
    async with reranking(settings, engine=two, reward=stall_before_headers()) as r:
        _, reply = await asyncio.wait_for(r.keel.chat(model="mine"), 10)
        assert content(reply) == "no |and all the rest"
        assert reply["guardrails"]["rerank"]["error"] == "timeout"
        assert [request.json["n"] for request in r.keel.upstream.requests] == [2, 1]
        assert "max_tokens" not in r.keel.upstream.requests[1].json
        assert len(r.reward.requests) == 2  # it is waited for once
    async with reranking(settings + ", on_error: fail", engine=tree(*BLOCKS), reward=status(500)) as r:
        code, reply = await r.keel.chat(model="mine", stream=True)
        assert (code, reply["error"]["code"]) == (503, "reward_unavailable")


async def test_an_engine_that_fails_in_mid_reply_ends_the_stream_with_an_error(
    reranking: Callable[..., Any],
) -> None:
    async with reranking(SETTINGS) as r:
        r.keel.upstream.script(tree(*BLOCKS))
        r.keel.upstream.default = status(500)
        *chunks, error, done = await r.keel.stream(model="mine")
        assert text_of([json.loads(one) for one in chunks]) == "well done |"
        assert json.loads(error)["error"]["code"] == "upstream_error"
        assert done == b"[DONE]"


async def test_what_can_only_be_said_whole_is_streamed_as_the_best_of_n(
    reranking: Callable[..., Any],
) -> None:
    async with reranking(SETTINGS, engine=tree(("no", "longer")), reward=scoring(lambda t: [len(t)])) as r:
        data = await r.keel.stream(model="mine", response_format={"type": "json_object"})
        chunks = [json.loads(one) for one in data[:-1]]
        assert text_of(chunks) == "longer"
        assert chunks[-1]["guardrails"]["rerank"]["method"] == "best_of_n"


def test_settings_that_could_not_be_kept_are_refused() -> None:
    with pytest.raises(ValueError, match="can't refuse afterwards"):
        RerankSpec(model="m", method="blockwise", below="refuse", accept=1.0)
    with pytest.raises(ValueError, match="decides nothing"):
        RerankSpec(model="m", accept=1.0)
