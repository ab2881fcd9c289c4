"""The managed vLLM, with a stand-in that fails on demand: how it dies and comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from service.engine import (
    Interrupted,
    UpstreamError,
    VllmFailed,
)
from service.engine.vllm_process import ManagedVllm
from tests.service.engine.children import BODY, PATH, States, exists, running, until, words

# Dying


async def test_a_death_in_mid_stream_and_the_come_back(make: Callable[..., ManagedVllm]) -> None:
    states = States()
    child = make(observer=states)
    async with running(child) as engine:
        await engine.wait_ready(60)
        pid = child.pid
        assert pid is not None
        streams = [await engine.open_stream(PATH, BODY) for _ in range(5)]
        for stream in streams:
            await anext(stream)
        os.kill(pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(Interrupted) as caught:
                async for _ in stream:
                    pass
            assert caught.value.bytes_received
            ready_after = engine.ready
            assert not ready_after
        with pytest.raises(UpstreamError):
            await engine.complete(PATH, BODY)
        await engine.wait_ready(60)
        assert (await words(engine))[0] == f"pid {child.pid}" != f"pid {pid}"
    assert states.seen == ["starting", "ready", "restarting", "ready", "stopping", "stopped"]


async def test_readiness_does_not_wait_for_the_news(make: Callable[..., ManagedVllm]) -> None:
    child = make()
    async with running(child) as engine:
        await engine.wait_ready(60)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        deadline = time.monotonic() + 2
        while engine.ready and time.monotonic() < deadline:  # without once giving way to the event loop
            pass
        assert child.state == "ready"
        assert not engine.ready


async def test_a_broken_connection_is_a_suspicion_that_a_health_check_clears(
    make: Callable[..., ManagedVllm],
) -> None:
    child = make(health_seconds=60)
    async with running(child) as engine:
        await engine.wait_ready(60)
        child.suspect()
        ready = [child.ready, engine.ready]
        await engine.wait_ready(2)  # well before the next regular look
        assert [*ready, engine.ready] == [False, False, True]
        assert child.restarts == 0


async def test_restarts_back_off_and_end(make: Callable[..., ManagedVllm]) -> None:
    states = States()
    child = make("die-young", observer=states, max_restarts=2)
    async with running(child) as engine:
        await engine.wait_ready(60)
        await until(lambda: child.state == "failed", 20)
        assert child.restarts == 2
        assert "exit code 4" in (child.failure or "")
        with pytest.raises(VllmFailed, match="exit code 4"):
            await engine.wait_ready()
    assert states.seen == ["starting", *["ready", "restarting"] * 3, "failed", "stopped"]


async def test_a_child_that_was_stable_is_forgiven(make: Callable[..., ManagedVllm]) -> None:
    child = make("die-young", max_restarts=1, stable_seconds=0.1)
    async with running(child):
        await until(lambda: child.restarts == 3, 30)
        assert child.state != "failed"


@pytest.mark.parametrize(("word", "reason"), [("hang", "health check"), ("engine-dead", "engine is dead")])
async def test_a_child_of_no_use_is_replaced(
    make: Callable[..., ManagedVllm], word: str, reason: str
) -> None:
    child = make(word, hung_seconds=0.5)
    async with running(child) as engine:
        await engine.wait_ready(60)
        pid = child.pid
        assert pid is not None
        await until(lambda: child.restarts == 1, 30)
        assert reason in (child.failure or "")
        assert not exists(pid)
