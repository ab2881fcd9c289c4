"""The managed vLLM, with a stand-in that fails on demand: its start, its end, its output."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.engine import (
    Unavailable,
    VllmFailed,
    vllm_process,
)
from service.engine.ports import free_port
from service.engine.vllm_process import ManagedVllm
from tests.fakes import vllm_server as stand_in
from tests.fakes.upstream import FakeUpstream
from tests.service.engine.children import BODY, PATH, SECRET, States, exists, read_proc, running, until, words

# Starting


async def test_it_starts_reports_its_phases_and_serves(make: Callable[..., ManagedVllm]) -> None:
    phases: list[str] = []
    states = States()
    async with running(make(observer=states, on_phase=phases.append)) as engine:
        before = engine.ready
        with pytest.raises(Unavailable, match="not ready"):
            await engine.complete(PATH, BODY)
        await engine.wait_ready(60)
        assert [before, engine.ready] == [False, True]
        assert len(await words(engine)) == 21
    assert phases == ["importing vLLM", "reading the checkpoint", "checking the model's configuration"]
    assert states.seen == ["starting", "ready", "stopping", "stopped"]


async def test_its_key_is_not_among_its_arguments(make: Callable[..., ManagedVllm]) -> None:
    child = make()
    async with running(child) as engine:
        await engine.wait_ready(60)
        assert child.pid is not None
        assert child.api_key not in read_proc(child.pid, "cmdline")
        assert child.api_key in read_proc(child.pid, "environ")


async def test_what_keeps_it_from_starting_is_told(make: Callable[..., ManagedVllm]) -> None:
    states = States()
    child = make("exit", observer=states)
    async with running(child) as engine:
        with pytest.raises(VllmFailed) as caught:
            await engine.wait_ready(60)
        message = str(caught.value)
        assert "ended with exit code 3 while starting" in message
        assert "ValueError: the checkpoint is broken" in message
        with pytest.raises(VllmFailed, match="exit code 3"):  # for those who ask later, too
            await engine.wait_ready()
        with pytest.raises(Unavailable):
            await engine.complete(PATH, BODY)
    assert states.seen == ["starting", "failed", "stopped"]
    assert child.restarts == 0


async def test_a_start_that_takes_too_long_fails(make: Callable[..., ManagedVllm]) -> None:
    async with running(make("slow", start_seconds=0.5)) as engine:
        with pytest.raises(VllmFailed, match=r"did not become ready within 0\.5 s"):
            await engine.wait_ready(60)


async def test_waiting_has_a_limit_and_stopping_cuts_a_start_short(make: Callable[..., ManagedVllm]) -> None:
    child = make("slow")
    async with running(child) as engine:
        with pytest.raises(TimeoutError):
            await engine.wait_ready(0.3)
        waiter = asyncio.create_task(engine.wait_ready())
        await until(lambda: child.pid)
        pid = child.pid
        assert pid is not None
        await child.stop()
        with pytest.raises(VllmFailed, match="stop"):
            await waiter
        assert not exists(pid)


async def test_a_port_that_was_taken_meanwhile_is_no_failure(make: Callable[..., ManagedVllm]) -> None:
    child = make("port-taken")
    async with running(child) as engine:
        await engine.wait_ready(60)
        assert child.restarts == 0
        assert await words(engine)


async def test_a_stranger_on_its_port_is_not_taken_for_it(
    make: Callable[..., ManagedVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeUpstream() as stranger:
        ports = iter([stranger.port])
        monkeypatch.setattr(vllm_process, "free_port", lambda: next(ports, None) or free_port())
        child = make()
        async with running(child) as engine:
            await engine.wait_ready(60)
            assert child.port != stranger.port
            assert child.restarts == 0
            assert await words(engine)
        assert {request.path for request in stranger.requests} == {"/health"}


# Ending


async def test_all_of_its_processes_end_with_it(make: Callable[..., ManagedVllm], tmp_path: Path) -> None:
    child = make("engine-process")
    async with running(child) as engine:
        await engine.wait_ready(60)
        pids = [child.pid or 0, int((tmp_path / "state").read_text())]
        assert all(map(exists, pids))
    await until(lambda: not any(map(exists, pids)))


async def test_a_child_that_ignores_sigterm_is_killed_in_time(make: Callable[..., ManagedVllm]) -> None:
    child = make("ignore-term", term_seconds=0.3)
    async with running(child) as engine:
        await engine.wait_ready(60)
        pid = child.pid
        assert pid is not None
        began = time.monotonic()
        async with asyncio.timeout(20):
            await child.stop()
        assert time.monotonic() - began >= 0.3
        assert not exists(pid)
        assert child.pid is None


async def test_its_engine_ends_when_only_the_server_was_killed(
    make: Callable[..., ManagedVllm], tmp_path: Path
) -> None:
    child = make("engine-process", backoff_seconds=30)
    async with running(child) as engine:
        await engine.wait_ready(60)
        orphan = int((tmp_path / "state").read_text())
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: not exists(orphan))


async def test_nothing_outlives_a_gateway_that_was_killed(tmp_path: Path) -> None:
    environment = stand_in.install(tmp_path / "path")
    environment.update(FAKE_VLLM="engine-process,ignore-term", FAKE_VLLM_STATE=str(tmp_path / "state"))
    (tmp_path / "config.json").write_text("{}")
    gateway = textwrap.dedent(f"""
        import asyncio
        from pathlib import Path
        from service.engine import ManagedVllm, VllmConfig
        async def main():
            environment = {environment!r}
            config = VllmConfig(Path({str(tmp_path)!r}), "m", device="cpu", environment=environment)
            child = ManagedVllm(config)
            await child.start()
            await child.wait_ready(30)
            print("PIDS", child.pid, child._warden.pid, flush=True)
            await asyncio.sleep(3600)
        asyncio.run(main())
    """)
    process = _python(gateway)
    try:
        line = await asyncio.to_thread(_line_with, process, "PIDS")
        pids = [*map(int, line.split()[1:]), int((tmp_path / "state").read_text())]
        assert all(map(exists, pids))
        process.kill()
        process.wait()
        await until(lambda: not any(map(exists, pids)), 5)
    finally:
        process.kill()
        process.communicate()


def _python(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def _line_with(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith(word))


async def test_starting_and_stopping_twice(make: Callable[..., ManagedVllm]) -> None:
    child = make()
    await child.stop()
    for _ in range(2):
        await child.start()
        await child.start()
        await child.wait_ready(60)
        await child.stop()
        await child.stop()
    assert child.state == "stopped"


async def test_no_task_of_its_outlives_it(make: Callable[..., ManagedVllm]) -> None:
    """Whoever stops it may end the loop in the next moment."""
    others = asyncio.all_tasks()
    child = make(health_seconds=60)
    await child.start()
    await child.wait_ready(60)
    await asyncio.sleep(0.05)  # now it waits for the next look, or for a suspicion
    await child.stop()
    assert asyncio.all_tasks() == others


# Output


async def test_no_word_of_a_prompt_is_kept_or_logged(
    make: Callable[..., ManagedVllm], capfd: pytest.CaptureFixture[str]
) -> None:
    child = make()
    async with running(child) as engine:
        await engine.wait_ready(60)
        await words(engine)
        await until(lambda: "ValueError" in child.last_lines)
        kept = "\n".join(child.last_lines)
        assert SECRET not in kept
        assert "INFO [request_logger.py:42]" in kept
        assert 'File "/x/serving.py", line 7' in kept
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: child.failure)
        assert SECRET not in (child.failure or "")
    out, err = capfd.readouterr()
    assert SECRET not in out + err
