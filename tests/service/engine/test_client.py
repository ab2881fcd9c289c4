"""The upstream client on real sockets, against an upstream that does everything wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.client import UpstreamClient, end_to_end
from service.engine.config import SizeLimits, TimeLimits, UpstreamConfig
from service.engine.errors import (
    Aborted,
    ConnectError,
    InStreamError,
    Interrupted,
    ProtocolError,
    UpstreamStatusError,
    UpstreamTimeout,
)
from tests.fakes import upstream as fake
from tests.fakes.upstream import DONE, Behaviour, Exchange, FakeUpstream

PATH = "/v1/chat/completions"
TIMES = TimeLimits(connect=1, first_token=1, idle=1, total=5)


@contextlib.asynccontextmanager
async def connected(
    *behaviours: Behaviour, times: TimeLimits = TIMES, sizes: SizeLimits | None = None, **config: Any
) -> AsyncIterator[tuple[UpstreamClient, FakeUpstream]]:
    async with FakeUpstream() as server:
        server.script(*behaviours)
        client = UpstreamClient(UpstreamConfig("fake", server.base_url, **config), times, sizes)
        await client.open()
        try:
            yield client, server
        finally:
            await client.close()


def body(stream: bool = False, **extra: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [], "stream": stream, **extra}).encode()


async def texts(client: UpstreamClient, into: list[str] | None = None) -> list[str]:
    got: list[str] = [] if into is None else into
    async with await client.open_stream(PATH, body(stream=True)) as stream:
        async for payload in stream:
            got.append(json.loads(payload)["choices"][0]["delta"]["content"])
    return got


# Whole replies


async def test_a_whole_reply() -> None:
    async with connected() as (client, server):
        sent = body(extra_field={"x": "é😀"})
        reply = await client.complete(PATH, sent)
        assert reply.status == 200
        assert json.loads(reply.body)["choices"][0]["message"]["content"] == "Hello there, friend."
        assert server.requests[0].body == sent
        assert server.requests[0].path == PATH
        assert server.requests[0].headers["content-type"] == "application/json"


async def test_connections_are_reused() -> None:
    async with connected() as (client, server):
        for _ in range(5):
            await client.complete(PATH, body())
            assert await texts(client)
        # A request that comes between a stream's [DONE] and its end takes a second one.
        assert server.connections <= 2


async def test_get_needs_no_body() -> None:
    async with connected() as (client, server):
        reply = await client.complete("/v1/models", None, method="GET")
        assert json.loads(reply.body)["object"] == "list"
        assert server.requests[0].method == "GET"


async def test_a_large_body_arrives_whole() -> None:
    async with connected() as (client, server):
        sent = body(filler="x" * 3_000_000)
        await client.complete(PATH, sent)
        assert server.requests[0].body == sent


async def test_only_harmless_headers_are_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-upstream")
    async with connected(api_key_env="UPSTREAM_KEY") as (client, server):
        await client.complete(
            PATH,
            body(),
            {
                "X-Request-Id": "r1",
                "traceparent": "00-1",
                "Authorization": "Bearer gateway-key",
                "X-Api-Key": "gateway-key",
                "Cookie": "a=b",
                "Connection": "close",
                "Transfer-Encoding": "chunked",
                "Host": "evil",
                "Accept-Encoding": "gzip",
                "X-Split": "a\r\nX-Injected: b",
            },
        )
        headers = server.requests[0].headers
        assert headers["x-request-id"] == "r1"
        assert headers["traceparent"] == "00-1"
        assert headers["authorization"] == "Bearer sk-upstream"
        assert headers["accept-encoding"] == "identity"
        assert headers["host"] == server.base_url.removeprefix("http://")
        forbidden = {"cookie", "connection", "transfer-encoding", "x-api-key", "x-split", "x-injected"}
        assert not forbidden & headers.keys()
        assert "gateway-key" not in headers.values()


def test_a_key_that_is_not_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPSTREAM_KEY", raising=False)
    with pytest.raises(ValueError, match="'UPSTREAM_KEY' must hold its API key"):
        UpstreamClient(UpstreamConfig("fake", "http://127.0.0.1:1", api_key_env="UPSTREAM_KEY"))


def test_a_key_does_not_show() -> None:
    assert "sk-secret" not in repr(UpstreamConfig("fake", "http://127.0.0.1:1", api_key="sk-secret"))


@pytest.mark.parametrize("url", ["127.0.0.1:1", "ftp://h", "http://u:p@h", "http://h?q=1", "http://"])
def test_a_wrong_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        UpstreamConfig("fake", url)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_base_url_may_name_the_version(suffix: str) -> None:
    async with FakeUpstream() as server:
        client = UpstreamClient(UpstreamConfig("fake", server.base_url + suffix), TIMES)
        await client.open()
        await client.complete(PATH, body())
        await client.close()
        assert server.requests[0].path == PATH


async def test_response_headers_that_may_be_passed_on() -> None:
    reply_headers = {"Connection": "X-Hop, close", "X-Hop": "1", "Set-Cookie": "a=b", "X-Keep": "yes"}
    async with connected(fake.answer({}, headers=reply_headers)) as (client, _):
        kept = end_to_end((await client.complete(PATH, body())).headers)
        assert kept["x-keep"] == "yes"
        assert kept["content-type"] == "application/json"
        assert not {"connection", "x-hop", "set-cookie", "content-length"} & {k.lower() for k in kept}


# Statuses


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("code", "retryable", "counts"),
    [(400, False, False), (429, False, False), (500, False, True), (503, True, True), (307, False, False)],
)
async def test_statuses(streamed: bool, code: int, retryable: bool, counts: bool) -> None:
    async with connected(fake.status(code, "because", retry_after=2.5)) as (client, server):
        with pytest.raises(UpstreamStatusError) as caught:
            await (texts(client) if streamed else client.complete(PATH, body()))
        error = caught.value
        assert (error.status, error.retry_after, error.upstream) == (code, 2.5, "fake")
        assert json.loads(error.body)["error"]["message"] == "because"
        assert (error.retryable, error.counts_against_upstream) == (retryable, counts)
        assert "because" not in str(error)
        await client.complete(PATH, body())
        assert server.connections == 1  # an error's connection is as good as any


async def test_an_endless_error_body_is_cut() -> None:
    big = fake.status(500, "x" * 500_000)
    async with connected(big, sizes=SizeLimits(error_body=1000)) as (client, _):
        with pytest.raises(UpstreamStatusError) as caught:
            await client.complete(PATH, body())
        assert len(caught.value.body) == 1000


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "nan", "inf", ""])
async def test_a_useless_retry_after_is_none(value: str) -> None:
    async with connected(fake.answer({}, 503, {"Retry-After": value})) as (client, _):
        with pytest.raises(UpstreamStatusError) as caught:
            await client.complete(PATH, body())
        assert caught.value.retry_after is None


# Connections that fail


async def test_nothing_listens() -> None:
    async with connected() as (client, server):
        await server.stop()
        with pytest.raises(ConnectError) as caught:
            await client.complete(PATH, body())
        assert caught.value.retryable
        assert caught.value.phase == "connect"
        with pytest.raises(ConnectError):
            await texts(client)


async def test_a_client_that_moves() -> None:
    async with connected() as (client, server), FakeUpstream() as other:
        await client.complete(PATH, body())
        client.move(other.base_url)
        await client.complete(PATH, body())
        assert (len(server.requests), len(other.requests)) == (1, 1)


@pytest.mark.parametrize("streamed", [False, True])
async def test_reset_before_the_first_byte_may_be_retried(streamed: bool) -> None:
    async with connected(fake.reset_at_once()) as (client, _):
        with pytest.raises(Interrupted) as caught:
            await (texts(client) if streamed else client.complete(PATH, body()))
        assert caught.value.retryable
        assert not caught.value.bytes_received


async def test_a_body_that_is_too_short() -> None:
    short = fake.raw_bytes(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id":')
    async with connected(short) as (client, _):
        with pytest.raises(Interrupted) as caught:
            await client.complete(PATH, body())
        assert caught.value.bytes_received
        assert not caught.value.retryable


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 2000 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"]
)
async def test_what_is_not_http(streamed: bool, data: bytes) -> None:
    async with connected(fake.raw_bytes(data)) as (client, _):
        with pytest.raises(ProtocolError):
            await (texts(client) if streamed else client.complete(PATH, body()))


async def test_bodies_are_bounded() -> None:
    big = fake.answer({"x": "y" * 100_000})

    async def chunked(exchange: Exchange) -> None:
        await exchange.head(headers={"Content-Type": "application/json", "Transfer-Encoding": "chunked"})
        for _ in range(100):
            await exchange.chunk(b"y" * 1000)
        await exchange.end()

    async with connected(big, chunked, sizes=SizeLimits(body=50_000)) as (client, _):
        for _ in range(2):
            with pytest.raises(ProtocolError, match="above 50000 bytes"):
                await client.complete(PATH, body())


async def test_a_compressed_reply_is_refused() -> None:
    async with connected(fake.answer({}, headers={"Content-Encoding": "gzip"})) as (client, _):
        with pytest.raises(ProtocolError, match="compressed"):
            await client.complete(PATH, body())


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


# Time limits


def kinds(times: TimeLimits, behaviour: Behaviour, kind: str, phase: str, received: bool) -> Any:
    return pytest.param(times, behaviour, kind, phase, received, id=f"{kind}-{phase}")


@pytest.mark.parametrize(
    ("times", "behaviour", "kind", "phase", "received"),
    [
        kinds(replace(TIMES, first_token=0.1), fake.stall_before_headers(), "first_token", "headers", False),
        kinds(replace(TIMES, total=0.1), fake.stall_before_headers(), "total", "headers", False),
        kinds(replace(TIMES, first_token=0.1), fake.stall_after_headers(), "first_token", "body", False),
        kinds(replace(TIMES, idle=0.1), fake.stream(["a"] * 9, stall_after=2), "idle", "body", True),
        kinds(replace(TIMES, total=0.2), fake.stream(["a"] * 99, delay=0.02), "total", "body", True),
    ],
)
async def test_stream_limits(
    times: TimeLimits, behaviour: Behaviour, kind: str, phase: str, received: bool
) -> None:
    async with connected(behaviour, times=times) as (client, server):
        began = time.monotonic()
        with pytest.raises(UpstreamTimeout) as caught:
            await texts(client)
        assert time.monotonic() - began < 0.9
        assert (caught.value.kind, caught.value.phase) == (kind, phase)
        assert caught.value.bytes_received is received
        async with asyncio.timeout(2):  # and the upstream is let go
            await server.aborted.wait()


@pytest.mark.parametrize("data", [b": ping\n\n" * 100, fake.token("a" * 300)])
async def test_neither_pings_nor_dribbles_are_a_first_token(data: bytes) -> None:
    times = replace(TIMES, first_token=0.3)
    async with connected(fake.dribble(data, delay=0.01), times=times) as (client, _):
        with pytest.raises(UpstreamTimeout) as caught:
            await texts(client)
        assert caught.value.kind == "first_token"


async def test_whole_replies_have_a_total_limit() -> None:
    async with connected(fake.stall_before_headers(), times=replace(TIMES, total=0.1)) as (client, server):
        with pytest.raises(UpstreamTimeout) as caught:
            await client.complete(PATH, body())
        assert caught.value.kind == "total"
        async with asyncio.timeout(2):
            await server.aborted.wait()


async def test_a_slow_reader_is_not_an_idle_upstream() -> None:
    behaviour = fake.stream(["a", "b", "c"], delay=0.05)
    async with connected(behaviour, times=replace(TIMES, idle=0.3)) as (client, _):
        async with await client.open_stream(PATH, body(stream=True)) as stream:
            got = []
            async for payload in stream:
                got.append(payload)
                if len(got) == 2:  # it has waited for this one, so the idle limit is armed
                    await asyncio.sleep(0.6)
        assert len(got) == 4


async def test_steady_tokens_outlast_the_idle_limit() -> None:
    behaviour = fake.stream(["a"] * 10, delay=0.05)
    async with connected(behaviour, times=replace(TIMES, idle=0.3)) as (client, _):
        assert len(await texts(client)) == 11


async def test_connecting_is_limited() -> None:
    # A full backlog: the kernel drops further SYNs, so connecting hangs.
    import socket

    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = UpstreamClient(UpstreamConfig("fake", url), replace(TIMES, connect=0.2))
        await client.open()
        with pytest.raises(UpstreamTimeout) as caught:
            await client.complete(PATH, body())
        await client.close()
        assert (caught.value.kind, caught.value.retryable) == ("connect", True)


# Aborting


def abort_by_close(stream: Any, task: asyncio.Task[Any]) -> None:
    stream.close()


def abort_by_cancel(stream: Any, task: asyncio.Task[Any]) -> None:
    task.cancel()


@pytest.mark.parametrize("abort", [abort_by_close, abort_by_cancel])
async def test_aborting_a_stream_reaches_the_upstream_at_once(
    abort: Callable[[Any, asyncio.Task[Any]], None],
) -> None:
    async with connected(fake.stream(["a", "b"], stall_after=1)) as (client, server):
        stream = await client.open_stream(PATH, body(stream=True))

        async def read() -> None:
            async with stream:
                async for _ in stream:
                    pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.1)
        began = time.monotonic()
        abort(stream, task)
        async with asyncio.timeout(2):
            await server.aborted.wait()
        assert time.monotonic() - began < 0.5
        with pytest.raises((Aborted, asyncio.CancelledError)):
            await task


async def test_cancelling_a_whole_reply_reaches_the_upstream_at_once() -> None:
    async with connected(fake.stall_before_headers()) as (client, server):
        task = asyncio.create_task(client.complete(PATH, body()))
        await asyncio.sleep(0.1)
        task.cancel()
        async with asyncio.timeout(2):
            await server.aborted.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_end_of_stream_that_never_comes_frees_the_connection() -> None:
    async def no_last_chunk(exchange: Exchange) -> None:
        await exchange.sse_head()
        await exchange.chunk(fake.token("a") + DONE)
        await exchange.stall()

    async with connected(no_last_chunk) as (client, server):
        assert await texts(client) == ["a"]
        async with asyncio.timeout(3):
            await server.aborted.wait()


async def test_an_end_of_stream_that_comes_late_keeps_the_connection() -> None:
    async def late_last_chunk(exchange: Exchange) -> None:
        await exchange.sse_head()
        await exchange.chunk(fake.token("a") + DONE)
        await asyncio.sleep(0.05)
        await exchange.end()

    async with connected(late_last_chunk, late_last_chunk) as (client, server):
        for _ in range(2):
            assert await texts(client) == ["a"]
            await asyncio.sleep(0.15)
        assert (server.connections, server.open_connections, server.aborts) == (1, 1, 0)


async def test_closing_the_client_interrupts_whole_replies() -> None:
    async def half(exchange: Exchange) -> None:
        await exchange.head(headers={"Content-Length": "100"})
        await exchange.send(b"half")
        await exchange.stall()

    async with connected(half, fake.stall_before_headers()) as (client, _):
        tasks = [asyncio.create_task(client.complete(PATH, body())) for _ in range(2)]
        await asyncio.sleep(0.05)
        await client.close()
        for task in tasks:
            with pytest.raises(Interrupted):
                await task


async def test_closing_the_client_interrupts_its_streams() -> None:
    async with connected(fake.stream(["a", "b"], stall_after=1)) as (client, _):
        stream = await client.open_stream(PATH, body(stream=True))
        await anext(stream)
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(Interrupted):
            await task
