"""The upstream client on real sockets: what ends a request before its reply does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from service.engine.client import UpstreamClient
from service.engine.config import TimeLimits, UpstreamConfig
from service.engine.errors import (
    Aborted,
    Interrupted,
    UpstreamTimeout,
)
from tests.fakes import upstream as fake
from tests.fakes.upstream import DONE, Behaviour, Exchange
from tests.service.engine.clients import PATH, TIMES, body, connected, texts

# Time limits


PATIENT = TimeLimits(connect=30, first_token=30, idle=30, total=30)


def kinds(times: TimeLimits, behaviour: Behaviour, kind: str, phase: str, received: bool) -> Any:
    return pytest.param(times, behaviour, kind, phase, received, id=f"{kind}-{phase}")


@pytest.mark.parametrize(
    ("times", "behaviour", "kind", "phase", "received"),
    [
        kinds(
            replace(PATIENT, first_token=0.1), fake.stall_before_headers(), "first_token", "headers", False
        ),
        kinds(replace(PATIENT, total=0.1), fake.stall_before_headers(), "total", "headers", False),
        kinds(replace(PATIENT, first_token=0.1), fake.stall_after_headers(), "first_token", "body", False),
        kinds(replace(PATIENT, idle=0.1), fake.stream(["a"] * 9, stall_after=2), "idle", "body", True),
        kinds(replace(PATIENT, total=0.2), fake.stream(["a"] * 99, delay=0.02), "total", "body", True),
    ],
)
async def test_stream_limits(
    times: TimeLimits, behaviour: Behaviour, kind: str, phase: str, received: bool
) -> None:
    # The other limits are far off: that it ends within this time is this limit's doing.
    async with asyncio.timeout(10), connected(behaviour, times=times) as (client, server):
        with pytest.raises(UpstreamTimeout) as caught:
            await texts(client)
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
    async with connected(fake.stream(["a", "b"], stall_after=1), times=PATIENT) as (client, server):
        stream = await client.open_stream(PATH, body(stream=True))

        async def read() -> None:
            async with stream:
                async for _ in stream:
                    pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.1)
        abort(stream, task)
        async with asyncio.timeout(10):  # which no limit of the client's would end
            await server.aborted.wait()
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
