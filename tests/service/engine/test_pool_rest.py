"""An upstream that says 429 is left to rest while another has room."""

from __future__ import annotations

import asyncio

import pytest

from service.engine.config import PoolLimits
from service.engine.errors import UpstreamStatusError
from service.engine.pool import UpstreamPool
from tests.fakes import upstream as fake
from tests.service.engine.pools import BODY, PATH, STREAM, pooled, read, until

LIMITS = PoolLimits(max_in_flight=1, failures_to_open=3)


async def ask(pool: UpstreamPool, streamed: bool) -> None:
    await (read(pool) if streamed else pool.complete(PATH, BODY))


async def until_rests(pool: UpstreamPool) -> None:
    """Ask until one of them has said 429."""
    while not any(upstream.rests for upstream in pool.upstreams):
        await pool.complete(PATH, BODY)


@pytest.mark.parametrize("streamed", [False, True])
async def test_another_upstream_answers_and_the_limited_one_rests(streamed: bool) -> None:
    async with pooled(2) as (pool, (limited, free), recorder):
        limited.default = fake.status(429, retry_after=60)
        for _ in range(6):
            await ask(pool, streamed)
        assert (len(limited.requests), len(free.requests)) == (1, 6)
        assert recorder.retries == ["UpstreamStatusError"]
        assert recorder.states == []  # it is well, only busy


async def test_it_is_asked_again_when_the_time_that_it_named_is_over() -> None:
    async with pooled(2) as (pool, (limited, _), _recorder):
        limited.script(fake.status(429, retry_after=0.1))
        await until_rests(pool)
        await until(lambda: not any(upstream.rests for upstream in pool.upstreams))
        await asyncio.gather(*(pool.complete(PATH, BODY) for _ in range(4)))
        assert len(limited.requests) > 1


async def test_without_a_time_it_rests_all_the_same() -> None:
    async with pooled(2) as (pool, (limited, _), _recorder):
        limited.default = fake.status(429)
        await until_rests(pool)
        asked = len(limited.requests)
        await pool.complete(PATH, BODY)
        assert len(limited.requests) == asked


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_429_is_the_callers_when_all_say_it(streamed: bool) -> None:
    async with pooled(3) as (pool, servers, _):
        for server in servers:
            server.default = fake.status(429, retry_after=7)
        for times in (1, 2):
            with pytest.raises(UpstreamStatusError) as caught:
                await ask(pool, streamed)
            assert (caught.value.status, caught.value.retry_after) == (429, 7)
            # The first request asks each of them, the next ones don't make it worse.
            assert sum(len(server.requests) for server in servers) == 2 + times


async def test_nobody_waits_for_a_slot_elsewhere() -> None:
    async with pooled(2, LIMITS) as (pool, (limited, busy), _):
        busy.default = fake.stream(["a"], stall_after=1)
        limited.default = fake.status(429)
        held = None
        while held is None:  # on whichever upstream has its turn
            try:
                held = await pool.open_stream(PATH, STREAM)
            except UpstreamStatusError:
                continue
        asked = len(limited.requests)
        with pytest.raises(UpstreamStatusError):
            await pool.complete(PATH, BODY)
        assert len(limited.requests) == asked + 1
        held.close()
