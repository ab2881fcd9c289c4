"""Who comes while an engine is busy hears at once whether waiting makes sense.

A pool that has answered nothing yet takes a request to last one second: that is what the waits are made of.
"""

from __future__ import annotations

import asyncio

import pytest

from service.engine.config import PoolLimits
from service.engine.errors import Overloaded, Unavailable
from service.engine.pool import UpstreamPool
from tests.fakes import upstream as fake
from tests.service.engine.pools import BODY, PATH, pooled, until


def busy(pool: UpstreamPool, requests: int) -> list[asyncio.Task[object]]:
    return [asyncio.create_task(pool.complete(PATH, BODY)) for _ in range(requests)]


async def end(tasks: list[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_as_many_may_wait_as_can_be_served_in_time() -> None:
    limits = PoolLimits(max_in_flight=2, max_wait_seconds=3)
    async with pooled(1, limits) as (pool, (server,), recorder):
        server.default = fake.stall_before_headers()
        pool.check(coming=1)
        tasks = busy(pool, 7)  # two at work, five wait: the sixth would have its slot after 3 s
        await until(lambda: pool.waiting == 5)
        pool.check()
        with pytest.raises(Overloaded, match=r"a slot would be free in 3\.5 s"):
            pool.check(coming=1)
        assert recorder.refusals == ["Overloaded"]
        await end(tasks)
        pool.check(coming=1)


async def test_no_more_wait_than_may_wait() -> None:
    limits = PoolLimits(max_in_flight=1, max_waiting=2, max_wait_seconds=100)
    async with pooled(1, limits) as (pool, (server,), _):
        server.default = fake.stall_before_headers()
        tasks = busy(pool, 3)
        await until(lambda: pool.waiting == 2)
        with pytest.raises(Overloaded, match="2 requests are waiting already"):
            pool.check()
        await end(tasks)


async def test_a_queue_that_does_not_empty_is_kept_short() -> None:
    limits = PoolLimits(max_in_flight=20, max_wait_seconds=0.3)
    async with pooled(1, limits) as (pool, (server,), _):
        server.default = fake.stall_before_headers()
        tasks = busy(pool, 22)
        await until(lambda: pool.waiting == 2)
        pool.check()  # 0.15 s
        await asyncio.sleep(0.2)
        tasks += busy(pool, 1)
        await until(lambda: pool.waiting == 1)  # the others have waited in vain, the queue was never empty
        with pytest.raises(Overloaded, match="a slot would be free in"):
            pool.check()  # 0.1 s, of which a burst's newcomer would have been let wait
        await end(tasks)
        tasks = busy(pool, 22)  # another burst
        await until(lambda: pool.waiting == 2)
        pool.check()
        await end(tasks)


async def test_nobody_waits_for_an_engine_that_is_down() -> None:
    async with pooled(1) as (pool, _, recorder):
        pool.set_up("u0", False)
        with pytest.raises(Unavailable):
            pool.check()
        assert recorder.refusals == ["Unavailable"]
