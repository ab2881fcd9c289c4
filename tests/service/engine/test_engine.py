"""The facade, with remote upstreams. With a child: test_vllm_process.py."""

from __future__ import annotations

import asyncio
import json

import pytest

from service.engine import Engine, Interrupted, PoolLimits, TimeLimits, Unavailable, UpstreamConfig
from service.engine.config import SizeLimits
from tests.fakes import upstream as fake
from tests.fakes.upstream import FakeUpstream

PATH = "/v1/chat/completions"
STREAM = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
BODY = json.dumps({"model": "m", "messages": []}).encode()


async def test_from_start_to_close() -> None:
    async with FakeUpstream() as server:
        engine = Engine([UpstreamConfig("fake", server.base_url)])
        ready = [engine.ready]
        await engine.start()
        ready.append(engine.ready)
        assert (await engine.complete(PATH, BODY)).status == 200
        async with engine.stream(PATH, STREAM) as events:
            assert [payload async for payload in events]
        assert await engine.aclose(drain=1)
        assert [*ready, engine.ready] == [False, True, False]
        with pytest.raises(Unavailable):
            await engine.complete(PATH, BODY)
        assert await engine.aclose()


async def test_leaving_the_stream_aborts_upstream() -> None:
    async with FakeUpstream(fake.stream(["a", "b"], stall_after=1)) as server:
        engine = Engine([UpstreamConfig("fake", server.base_url)])
        await engine.start()
        async with engine.stream(PATH, STREAM) as events:
            await anext(events)
        async with asyncio.timeout(1):
            await server.aborted.wait()
        assert engine.pool.in_flight == 0
        await engine.aclose()


async def test_closing_cuts_what_outlasts_the_drain() -> None:
    async with FakeUpstream(fake.stream(["a", "b"], stall_after=1)) as server:
        engine = Engine([UpstreamConfig("fake", server.base_url)])
        await engine.start()

        async def read() -> None:
            async with engine.stream(PATH, STREAM) as events:
                async for _ in events:
                    pass

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        assert not await engine.aclose(drain=0.05)
        with pytest.raises(Interrupted):
            await reader
        assert engine.pool.in_flight == 0


async def test_raw_streams_pass_through() -> None:
    async with FakeUpstream(fake.raw_stream(b": x\n\nanything")) as server:
        engine = Engine([UpstreamConfig("fake", server.base_url)])
        await engine.start()
        async with engine.stream(PATH, STREAM, raw=True) as events:
            assert b"".join([chunk async for chunk in events.raw()]) == b": x\n\nanything"
        await engine.aclose()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeLimits(idle=0), "'idle' must be above zero"),
        (lambda: SizeLimits(event=0), "'event' must be above zero"),
        (lambda: PoolLimits(max_in_flight=0), "'max_in_flight' must be at least 1"),
        (lambda: PoolLimits(max_waiting=-1), "can't be negative"),
        (lambda: PoolLimits(open_seconds=9, max_open_seconds=1), "'open_seconds'"),
    ],
)
def test_settings_that_can_not_work_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
