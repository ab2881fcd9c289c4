"""The upstream client on real sockets: streams, as they should be and as they are."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.config import SizeLimits
from service.engine.errors import (
    InStreamError,
    Interrupted,
    ProtocolError,
)
from tests.fakes import upstream as fake
from tests.fakes.upstream import DONE, Exchange
from tests.service.engine.clients import PATH, body, connected, texts

# Streams


async def test_a_stream_is_complete() -> None:
    async with connected(fake.stream(["Hel", "lo"])) as (client, _):
        async with await client.open_stream(PATH, body(stream=True)) as stream:
            payloads = [payload async for payload in stream]
            assert stream.complete
        assert [json.loads(p)["choices"][0]["delta"]["content"] for p in payloads] == ["Hel", "lo", ""]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@settings(max_examples=25, deadline=None)
@given(offsets=st.lists(st.integers(0, 900), max_size=20))
async def test_packets_may_end_anywhere(offsets: list[int]) -> None:
    words = ["né", "😀", "日本", "\u2028x"]
    async with connected(fake.stream(words, cut=fake.at(*offsets))) as (client, _):
        assert await texts(client) == [*words, ""]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + fake.token("a") + DONE,
        b": ping\r\n\r\n" + fake.token("a").replace(b"\n", b"\r\n") + b"data:[DONE]\r\n\r\n",
        b"data: \n\n" + fake.token("a") + DONE + b"data: after the end\n\n",
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_dialects_of_sse(data: bytes, size: int) -> None:
    async with connected(fake.raw_stream(data, cut=fake.every(size))) as (client, _):
        assert await texts(client) == ["a"]


async def test_raw_bytes_pass_unchanged() -> None:
    data = b': comment\n\ndata: {"a":\r\n' + bytes(range(256))
    async with connected(fake.raw_stream(data, cut=fake.every(7))) as (client, server):
        async with await client.open_stream(PATH, body(stream=True), raw=True) as stream:
            assert b"".join([chunk async for chunk in stream.raw()]) == data
            assert stream.complete
        await client.complete(PATH, body())
        assert server.connections == 1


@pytest.mark.parametrize("end", ["die_after", "hang_up_after"])
@pytest.mark.parametrize("raw", [False, True])
async def test_death_in_mid_stream(end: str, raw: bool) -> None:
    got: list[bytes] = []
    async with connected(fake.stream(["a", "b", "c"], **{end: 2})) as (client, _):  # type: ignore[arg-type]
        with pytest.raises(Interrupted) as caught:
            async with await client.open_stream(PATH, body(stream=True), raw=raw) as stream:
                async for payload in stream.raw() if raw else stream:
                    got.append(payload)
        assert got
        assert caught.value.bytes_received
        assert not caught.value.retryable
        assert not stream.complete


@pytest.mark.parametrize("required", [True, False])
async def test_a_stream_without_done(required: bool) -> None:
    async with connected(fake.stream(["a"], done=False), done_required=required) as (client, _):
        got: list[str] = []
        with pytest.raises(Interrupted) if required else contextlib.nullcontext():
            await texts(client, got)
        assert got == ["a", ""]


async def test_a_half_event_at_the_end_is_no_end() -> None:
    data = fake.token("a") + b'data: {"half'
    async with connected(fake.raw_stream(data), done_required=False) as (client, _):
        with pytest.raises(Interrupted):
            await texts(client)


async def test_an_error_object_within_the_stream() -> None:
    data = fake.token("a") + fake.event({"error": {"message": "boom", "code": 500}}) + DONE
    got: list[str] = []
    async with connected(fake.raw_stream(data)) as (client, _):
        with pytest.raises(InStreamError) as caught:
            await texts(client, got)
        assert got == ["a"]
        assert json.loads(caught.value.body)["error"]["message"] == "boom"
        assert "boom" not in str(caught.value)


async def test_json_in_place_of_a_stream() -> None:
    async with connected(fake.answer({"choices": []})) as (client, _):
        with pytest.raises(ProtocolError, match="'application/json'"):
            await texts(client)


async def test_events_are_bounded() -> None:
    data = fake.token("a") + b"data: " + b"x" * 10_000 + b"\n\n" + DONE
    got: list[str] = []
    async with connected(fake.raw_stream(data), sizes=SizeLimits(event=5000)) as (client, _):
        with pytest.raises(ProtocolError, match="5000 bytes"):
            await texts(client, got)
        assert got in ([], ["a"])


async def test_a_slow_reader_holds_the_upstream_back() -> None:
    async def flood(exchange: Exchange) -> None:
        await exchange.sse_head()
        for i in range(20_000):
            await exchange.chunk(fake.token("x" * 1000))
            sent.append(i)
        await exchange.chunk(DONE)
        await exchange.end()

    sent: list[int] = []
    async with connected(flood) as (client, _), await client.open_stream(PATH, body(stream=True)) as stream:
        await anext(stream)
        await asyncio.sleep(0.3)
        # 20 MB would come: all but the sockets' and the reader's buffers must still be unsent.
        assert len(sent) < 19_000
