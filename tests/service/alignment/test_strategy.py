"""A reply that takes a strategy: moderated like any other, and worth waiting for."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from guardrails.servable import ServableSpec
from service.alignment.strategy import Aligned, Single, Strategy
from service.engine.engine import Engine
from service.engine.errors import ConnectError
from service.generation import Generation
from service.request import Examined, Refusal
from tests.fakes.upstream import stall_before_headers, status, well_behaved
from tests.service.conftest import Running, events, text_of, until

GUARDED = "output: [{guard: patterns, patterns: ['zephyr'], action: block}]\n"
REDACTED = "output: [{guard: patterns, patterns: ['zephyr'], action: redact, replacement: '[x]'}]\n"


@dataclass
class Scripted:
    """The engine's reply after `delay` seconds, or an error."""

    delay: float = 0.0
    error: Exception | None = None
    running: bool = False
    cancelled: bool = False
    first: Strategy = field(default_factory=Single)
    engines: Sequence[Engine] = ()
    servables: Mapping[str, ServableSpec] = field(default_factory=dict)

    async def answer(self, generation: Generation, examined: Examined) -> Aligned:
        self.running = True
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        aligned = await self.first.answer(generation, examined)
        return Aligned(aligned.payload, {"rerank": {"candidates": 3}})


def install(keel: Running, strategy: Strategy, name: str = "mine") -> None:
    catalog = keel.gateway.catalog
    served = dataclasses.replace(catalog.get(name), strategy=strategy)
    catalog._served = {**catalog._served, name: served}


@pytest.mark.parametrize("policy", ["", GUARDED])
async def test_a_strategys_reply_reaches_the_caller_whole_and_streamed_alike(
    serve: Callable[..., Any], policy: str
) -> None:
    async with serve({"mine": policy}) as keel:
        install(keel, Scripted())
        code, reply = await keel.chat(model="mine")
        assert code == 200
        assert reply["choices"][0]["message"]["content"] == "Hello there, friend."
        assert reply["choices"][0]["finish_reason"] == "stop"
        assert reply["model"] == "mine"
        assert reply["guardrails"]["rerank"] == {"candidates": 3}

        data = await keel.stream(model="mine", stream_options={"include_usage": True})
        chunks = [json.loads(one) for one in data[:-1]]
        assert data[-1] == b"[DONE]"
        assert text_of(chunks[:-1]) == "Hello there, friend."
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-2]["guardrails"]["rerank"] == {"candidates": 3}
        assert chunks[-1]["usage"] == reply["usage"]
        assert all("stream" not in request.json for request in keel.upstream.requests)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_output_guards_have_the_last_word(serve: Callable[..., Any], stream: bool) -> None:
    async with serve({"mine": GUARDED, "soft": REDACTED}) as keel:
        keel.upstream.default = well_behaved("About zephyr now.")
        for name, expected, reason in (
            ("mine", "About ", "content_filter"),
            ("soft", "About [x] now.", "stop"),
        ):
            install(keel, Scripted(), name)
            if stream:
                chunks = [json.loads(one) for one in (await keel.stream(model=name))[:-1]]
                assert text_of(chunks) == expected
                assert chunks[-1]["choices"][0]["finish_reason"] == reason
            else:
                _, reply = await keel.chat(model=name)
                assert reply["choices"][0]["message"]["content"] == expected
                assert reply["choices"][0]["finish_reason"] == reason


async def test_who_streams_hears_comments_while_the_reply_is_made(serve: Callable[..., Any]) -> None:
    async with serve({"mine": GUARDED}, limits={"comment_every_s": 0.05}) as keel:
        install(keel, Scripted(delay=0.3))
        body = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        async with keel.session.post(keel.url + "/v1/chat/completions", json=body) as response:
            raw = await response.read()
        comments, rest = raw.split(b"data: ", 1)
        assert comments.count(b": keep-alive\n\n") >= 2
        assert set(comments.split(b"\n\n")) == {b": keep-alive", b""}
        assert text_of([json.loads(one) for one in events(b"data: " + rest)[:-1]]) == "Hello there, friend."


async def test_an_error_after_comments_is_an_event_and_before_them_a_status(
    serve: Callable[..., Any],
) -> None:
    async with serve({"mine": GUARDED}, limits={"comment_every_s": 0.05}) as keel:
        install(keel, Scripted(delay=0.2, error=ConnectError("no", upstream="x")))
        body = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        async with keel.session.post(keel.url + "/v1/chat/completions", json=body) as response:
            raw = await response.read()
            assert response.status == 200
        error, done = events(raw.replace(b": keep-alive\n\n", b""))
        assert json.loads(error)["error"]["code"] == "engine_unavailable"
        assert done == b"[DONE]"

        install(keel, Scripted())
        keel.upstream.script(status(429, "slow down"))
        code, reply = await keel.chat(model="mine", stream=True)
        assert (code, reply["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_a_caller_who_goes_away_ends_the_strategy(serve: Callable[..., Any]) -> None:
    async with serve({"mine": GUARDED}) as keel:
        strategy = Scripted(delay=30)
        install(keel, strategy)
        asking = asyncio.create_task(keel.chat(model="mine"))
        await until(lambda: strategy.running)
        asking.cancel()
        await until(lambda: strategy.cancelled)

        install(keel, Scripted())
        keel.upstream.script(stall_before_headers())
        asking = asyncio.create_task(keel.chat(model="mine"))
        await until(lambda: keel.upstream.requests)
        asking.cancel()
        await asyncio.wait_for(keel.upstream.aborted.wait(), 5)


async def test_a_refusal_after_comments_goes_into_the_stream_that_has_begun(
    serve: Callable[..., Any],
) -> None:
    async with serve({"mine": GUARDED + "refusal: Sorry.\n"}, limits={"comment_every_s": 0.05}) as keel:
        install(keel, Scripted(delay=0.2, error=Refusal()))
        body = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        async with keel.session.post(keel.url + "/v1/chat/completions", json=body) as response:
            raw = await response.read()
        assert raw.startswith(b": keep-alive\n\n")
        *chunks, done = events(raw.replace(b": keep-alive\n\n", b""))
        assert text_of([json.loads(one) for one in chunks]) == "Sorry."
        assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "content_filter"
        assert done == b"[DONE]"
