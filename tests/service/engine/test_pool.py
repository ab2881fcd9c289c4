"""The pool over real sockets: choice, bounds, retries, circuits, draining."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from service.engine.client import UpstreamClient
from service.engine.config import PoolLimits, TimeLimits, UpstreamConfig
from service.engine.errors import (
    ConnectError,
    Interrupted,
    Overloaded,
    Unavailable,
    UpstreamStatusError,
    UpstreamTimeout,
)
from service.engine.pool import UpstreamPool
from tests.fakes import upstream as fake
from tests.fakes.upstream import Exchange, FakeUpstream
from tests.service.engine.pools import BODY, PATH, QUICK, STREAM, pooled, read, until

# Choice


async def test_ties_go_round() -> None:
    async with pooled(3) as (pool, servers, _):
        for _ in range(9):
            await pool.complete(PATH, BODY)
        assert [len(server.requests) for server in servers] == [3, 3, 3]


async def test_the_least_busy_is_chosen() -> None:
    async with pooled(2) as (pool, servers, _):
        held = []
        for server in servers:
            server.default = fake.stream(["a"], stall_after=1)
        held.append(await pool.open_stream(PATH, STREAM))
        busy = next(server for server in servers if server.requests)
        free = next(server for server in servers if not server.requests)
        free.default = fake.well_behaved()
        for _ in range(4):
            await pool.complete(PATH, BODY)
        assert (len(busy.requests), len(free.requests)) == (1, 4)
        held[0].close()


async def test_names_must_differ() -> None:
    client = UpstreamClient(UpstreamConfig("same", "http://127.0.0.1:1"))
    with pytest.raises(ValueError, match="a name of its own"):
        UpstreamPool([client, client])
    with pytest.raises(ValueError, match="at least one"):
        UpstreamPool([])


# Bounds


async def test_in_flight_is_bounded_and_the_rest_waits_in_turn() -> None:
    limits = PoolLimits(max_in_flight=3, max_waiting=100)
    async with pooled(2, limits) as (pool, servers, recorder):
        for server in servers:
            server.default = fake.well_behaved(delay=0.02)
        await asyncio.gather(*(pool.complete(PATH, BODY) for _ in range(30)))
        assert recorder.peak == {"u0": 3, "u1": 3}
        assert recorder.now == {"u0": 0, "u1": 0}
        assert max(recorder.queued) == 24
        assert (pool.in_flight, pool.waiting, recorder.queued[-1]) == (0, 0, 0)


async def test_streams_hold_their_slot_until_they_end_or_are_closed() -> None:
    async with pooled(1, PoolLimits(max_in_flight=1)) as (pool, (server,), _):
        server.script(fake.stream(["a"], stall_after=1), fake.stream(["b"]))
        first = await pool.open_stream(PATH, STREAM)
        second = asyncio.create_task(read(pool))
        await asyncio.sleep(0.05)
        assert (pool.in_flight, pool.waiting) == (1, 1)
        first.close()
        assert len(await second) == 2
        assert pool.in_flight == 0


async def test_a_full_queue_refuses_at_once() -> None:
    async with pooled(1, PoolLimits(max_in_flight=1, max_waiting=1)) as (pool, (server,), recorder):
        server.default = fake.stall_before_headers()
        tasks = [asyncio.create_task(pool.complete(PATH, BODY)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded) as caught:
            await pool.complete(PATH, BODY)
        assert caught.value.retry_after >= 1
        assert recorder.refusals == ["Overloaded"]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (pool.in_flight, pool.waiting) == (0, 0)


async def test_waiting_has_a_deadline() -> None:
    async with pooled(1, PoolLimits(max_in_flight=1, max_wait_seconds=0.1)) as (pool, (server,), _):
        server.default = fake.stall_before_headers()
        task = asyncio.create_task(pool.complete(PATH, BODY))
        await asyncio.sleep(0.02)
        with pytest.raises(Overloaded, match=r"no slot within 0\.1 s"):
            await pool.complete(PATH, BODY)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_cancelling_never_loses_a_slot() -> None:
    limits = PoolLimits(max_in_flight=2, max_waiting=1000)
    async with pooled(1, limits) as (pool, (server,), _):
        server.default = fake.well_behaved(delay=0.003)
        for lag in range(12):
            tasks = [asyncio.create_task(pool.complete(PATH, BODY)) for _ in range(8)]
            await asyncio.sleep(lag / 1000)
            for task in tasks[::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [r for r in results[1::2] if isinstance(r, BaseException)]
            assert (pool.in_flight, pool.waiting) == (0, 0)


async def test_a_turn_that_comes_as_its_request_is_cancelled_goes_to_the_next() -> None:
    async with pooled(1, PoolLimits(max_in_flight=1)) as (pool, (server,), _):
        server.script(fake.stream(["a"], stall_after=1))
        holder = await pool.open_stream(PATH, STREAM)
        cancelled, waiting = (asyncio.create_task(pool.complete(PATH, BODY)) for _ in range(2))
        await until(lambda: pool.waiting == 2)
        holder.close()  # the turn is given here
        cancelled.cancel()
        async with asyncio.timeout(2):
            await waiting
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert (pool.in_flight, pool.waiting) == (0, 0)


async def test_nobody_overtakes() -> None:
    async with pooled(1, PoolLimits(max_in_flight=1)) as (pool, (server,), _):
        server.script(fake.stream(["a"], stall_after=1))
        holder = await pool.open_stream(PATH, STREAM)
        tasks = []
        for i in range(5):
            tasks.append(asyncio.create_task(pool.complete(f"/v1/{i}", BODY)))
            await asyncio.sleep(0)
        holder.close()
        tasks.append(asyncio.create_task(pool.complete("/v1/5", BODY)))
        await asyncio.gather(*tasks)
        assert [request.path for request in server.requests[1:]] == [f"/v1/{i}" for i in range(6)]


# Retries


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "failure", [fake.status(502), fake.status(503), fake.status(504), fake.reset_at_once()]
)
async def test_what_is_safe_is_sent_again(failure: fake.Behaviour, streamed: bool) -> None:
    async with pooled() as (pool, (server,), recorder):
        server.script(failure, failure)
        assert await (read(pool) if streamed else pool.complete(PATH, BODY))
        assert len(server.requests) == 3
        assert len(recorder.retries) == 2
        assert {request.body for request in server.requests} == {STREAM if streamed else BODY}


async def test_attempts_are_bounded() -> None:
    async with pooled() as (pool, (server,), recorder):
        server.default = fake.status(503)
        with pytest.raises(UpstreamStatusError):
            await pool.complete(PATH, BODY)
        assert len(server.requests) == QUICK.max_attempts
        assert recorder.now == {"u0": 0}


@pytest.mark.parametrize("code", [400, 401, 404, 500])
async def test_answers_are_not_sent_again(code: int) -> None:
    async with pooled(2) as (pool, servers, _):
        for server in servers:
            server.default = fake.status(code)
        with pytest.raises(UpstreamStatusError):
            await pool.complete(PATH, BODY)
        assert sum(len(server.requests) for server in servers) == 1


async def test_nothing_is_sent_again_after_a_byte() -> None:
    async def headers_then_reset(exchange: Exchange) -> None:
        await exchange.sse_head()
        await exchange.chunk(b"data: {")
        await asyncio.sleep(0.02)
        exchange.reset()

    async with pooled(2) as (pool, servers, recorder):
        for server in servers:
            server.default = headers_then_reset
        with pytest.raises(Interrupted):
            await read(pool)
        for server in servers:
            server.default = fake.stream(["a", "b"], die_after=1)
        with pytest.raises(Interrupted):
            await read(pool)
        assert sum(len(server.requests) for server in servers) == 2
        assert recorder.retries == []


async def test_a_first_token_that_does_not_come_is_not_waited_for_twice() -> None:
    async with FakeUpstream(fake.stall_after_headers()) as server:
        times = TimeLimits(connect=1, first_token=0.1, idle=1, total=5)
        client = UpstreamClient(UpstreamConfig("u0", server.base_url), times)
        await client.open()
        pool = UpstreamPool([client], QUICK)
        with pytest.raises(UpstreamTimeout):
            await read(pool)
        assert len(server.requests) == 1
        assert pool.in_flight == 0
        await client.close()


async def test_another_upstream_takes_over_at_once() -> None:
    limits = PoolLimits(retry_backoff_seconds=5, failures_to_open=100)
    async with pooled(2, limits) as (pool, servers, recorder):
        await servers[0].stop()
        async with asyncio.timeout(2):
            for _ in range(6):
                await pool.complete(PATH, BODY)
        assert len(servers[1].requests) == 6
        assert set(recorder.retries) == {"ConnectError"}


@pytest.mark.parametrize(("asked", "requests"), [(0.05, 2), (30, 1)])
async def test_retry_after_is_kept_to(asked: float, requests: int) -> None:
    async with pooled() as (pool, (server,), _):
        server.script(fake.status(503, retry_after=asked))
        began = asyncio.get_running_loop().time()
        with contextlib.nullcontext() if requests == 2 else pytest.raises(UpstreamStatusError):
            await pool.complete(PATH, BODY)
        assert len(server.requests) == requests
        if requests == 2:
            assert asyncio.get_running_loop().time() - began >= asked


# Circuits


async def test_a_dead_upstream_is_left_alone_and_found_again() -> None:
    async with pooled() as (pool, (server,), recorder):
        port = server.port
        await server.stop()
        with pytest.raises(ConnectError):
            await pool.complete(PATH, BODY)
        assert not pool.ready
        with pytest.raises(Unavailable) as caught:
            await pool.complete(PATH, BODY)
        assert caught.value.retry_after >= 1
        assert recorder.states == [("u0", "open")]
        await server.start(port)
        await until(lambda: pool.ready)
        await pool.complete(PATH, BODY)
        assert recorder.states == [("u0", "open"), ("u0", "half_open"), ("u0", "closed")]


async def test_while_one_probe_is_out_the_others_wait_for_its_verdict() -> None:
    async with pooled() as (pool, (server,), _):
        server.script(*[fake.status(500)] * 3)
        for _ in range(3):
            with pytest.raises(UpstreamStatusError):
                await pool.complete(PATH, BODY)
        await until(lambda: pool.ready)
        server.script(fake.stream(["a", "b"], delay=0.15))
        probe = asyncio.create_task(read(pool))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(pool.complete(PATH, BODY)) for _ in range(3)]
        await until(lambda: pool.waiting == 3 or len(server.requests) > 4)
        await asyncio.gather(*others)
        assert not probe.done()  # its first byte was enough
        assert len(await probe) == 3


async def test_a_failed_probe_sends_the_waiting_away() -> None:
    async with pooled() as (pool, (server,), _):
        server.script(*[fake.status(500)] * 3)
        for _ in range(3):
            with pytest.raises(UpstreamStatusError):
                await pool.complete(PATH, BODY)
        await until(lambda: pool.ready)

        async def slow_failure(exchange: Exchange) -> None:
            await asyncio.sleep(0.1)
            await fake.status(500)(exchange)

        server.script(slow_failure)
        probe = asyncio.create_task(pool.complete(PATH, BODY))
        await asyncio.sleep(0.02)
        other = asyncio.create_task(pool.complete(PATH, BODY))
        with pytest.raises(UpstreamStatusError):
            await probe
        with pytest.raises(Unavailable):
            await other
        assert len(server.requests) == 4


async def test_client_errors_leave_the_circuit_closed() -> None:
    async with pooled() as (pool, (server,), recorder):
        server.script(*[fake.status(400), fake.status(429)] * 5)
        for _ in range(10):
            with pytest.raises(UpstreamStatusError):
                await pool.complete(PATH, BODY)
        assert recorder.states == []
        await pool.complete(PATH, BODY)


async def test_streams_that_always_die_open_the_circuit() -> None:
    async with pooled() as (pool, (server,), recorder):
        server.default = fake.stream(["a", "b"], die_after=1)
        for _ in range(QUICK.failures_to_open):
            with pytest.raises(Interrupted):
                await read(pool)
        assert recorder.states == [("u0", "open")]


# Supervision and draining


async def test_a_supervisor_takes_an_upstream_out_and_back() -> None:
    async with pooled() as (pool, (server,), _):
        pool.set_up("u0", False)
        ready = [pool.ready]
        with pytest.raises(Unavailable, match="not ready"):
            await pool.complete(PATH, BODY)
        assert not server.requests
        pool.set_up("u0", True)
        assert [*ready, pool.ready] == [False, True]
        await pool.complete(PATH, BODY)


async def test_draining_lets_work_end_and_refuses_more() -> None:
    async with pooled(1, PoolLimits(max_in_flight=1)) as (pool, (server,), _):
        server.script(fake.stream(["a", "b", "c"], delay=0.05))
        running = asyncio.create_task(read(pool))
        await until(lambda: pool.in_flight == 1)
        waiting = asyncio.create_task(pool.complete(PATH, BODY))
        await until(lambda: pool.waiting == 1)
        drained = asyncio.create_task(pool.drain(2))
        with pytest.raises(Unavailable, match="shutting down"):
            await waiting
        with pytest.raises(Unavailable, match="shutting down"):
            await pool.complete(PATH, BODY)
        assert await drained
        assert len(await running) == 4
        assert not pool.ready


async def test_draining_gives_up_in_time() -> None:
    async with pooled() as (pool, (server,), _):
        server.script(fake.stall_before_headers())
        running = asyncio.create_task(pool.complete(PATH, BODY))
        await until(lambda: pool.in_flight == 1)
        assert not await pool.drain(0.1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
