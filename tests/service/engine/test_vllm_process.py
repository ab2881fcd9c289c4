"""The managed vLLM: its life with a stand-in that fails on demand, and the main points with the real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from service.engine import (
    Engine,
    Interrupted,
    Unavailable,
    UpstreamConfig,
    UpstreamError,
    UpstreamStatusError,
    VllmConfig,
    VllmFailed,
    vllm_process,
)
from service.engine.observer import NullObserver
from service.engine.ports import free_port
from service.engine.vllm_process import ManagedVllm
from tests.fakes import vllm_server as stand_in
from tests.fakes.upstream import FakeUpstream
from tests.fixtures_vllm import VllmServer

PATH = "/v1/chat/completions"
SECRET = "Secret-Prompt-Words"
BODY = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": SECRET}]}).encode()


class States(NullObserver):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def child(self, name: str, state: str, restarts: int) -> None:
        self.seen.append(state)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ManagedVllm]:
    """Makes children that run the stand-in."""
    environment = stand_in.install(tmp_path / "path")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def build(
        *words: str, observer: NullObserver | None = None, on_phase: Any = None, **settings: Any
    ) -> ManagedVllm:
        settings = {"health_seconds": 0.1, "backoff_seconds": 0.05, "term_seconds": 2.0} | settings
        environment.update(FAKE_VLLM=",".join(words), FAKE_VLLM_STATE=str(tmp_path / "state"))
        config = VllmConfig(model, "m", device="cpu", environment=dict(environment), **settings)
        return ManagedVllm(config, observer=observer, on_phase=on_phase or (lambda phase: None))

    return build


@contextlib.asynccontextmanager
async def running(child: ManagedVllm) -> AsyncIterator[Engine]:
    engine = Engine.managed(child)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - processes have no event
            await asyncio.sleep(0.01)


def exists(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def read_proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


async def words(engine: Engine) -> list[str]:
    async with engine.stream(PATH, BODY) as events:
        return [json.loads(payload)["choices"][0]["delta"].get("content") or "" async for payload in events]


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
        await child.stop()
        assert 0.3 <= time.monotonic() - began < 2
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


# The real thing


@pytest.mark.vllm
@pytest.mark.timeout(1500)
async def test_real_vllm_dies_in_mid_stream_and_comes_back(vllm_checkpoint: Path) -> None:
    body = json.dumps(
        {
            "model": "chat",
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    phases: list[str] = []
    child = ManagedVllm(VllmConfig(vllm_checkpoint, "chat", backoff_seconds=0.1), on_phase=phases.append)
    engine = Engine.managed(child)
    await engine.start()
    try:
        await engine.wait_ready(600)
        assert "loading the weights" in phases

        # 1. It streams.
        async with engine.stream(PATH, body) as events:
            assert len([payload async for payload in events]) > 50

        # 2. A stream that is left is aborted upstream.
        async with engine.stream(PATH, body) as events:
            await anext(events)
            await anext(events)
        await _until_idle(engine)

        # 3. Its death interrupts every stream, and readiness is gone at once.
        group = child.pid
        assert group is not None
        streams = [await engine.open_stream(PATH, body) for _ in range(3)]
        os.kill(group, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(Interrupted):
                async for _ in stream:
                    pass
        ready_after_death = engine.ready
        await until(lambda: not _group_members(group or 0))

        # 4. It comes back, and the same engine serves.
        assert not ready_after_death
        await engine.wait_ready(600)
        async with engine.stream(PATH, body) as events:
            assert len([payload async for payload in events]) > 50
        assert child.restarts == 1
        group = child.pid
        assert group is not None
    finally:
        await engine.aclose(drain=5)
    await until(lambda: not _group_members(group))


@pytest.mark.vllm
@pytest.mark.timeout(1500)
async def test_real_vllm_answers_who_has_its_key(vllm_server: VllmServer) -> None:
    upstream = UpstreamConfig("vllm", vllm_server.base_url, api_key=vllm_server.api_key)
    stranger = UpstreamConfig("stranger", vllm_server.base_url, api_key="guess")
    body = json.dumps(
        {"model": vllm_server.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    ).encode()
    engine, other = Engine([upstream]), Engine([stranger])
    await engine.start()
    await other.start()
    reply = json.loads((await engine.complete(PATH, body)).body)
    assert reply["usage"]["completion_tokens"] <= 5
    with pytest.raises(UpstreamStatusError) as caught:
        await other.complete(PATH, body)
    assert caught.value.status == 401
    wrong = body.replace(b'"max_tokens": 5', b'"max_tokens": -5')
    with pytest.raises(UpstreamStatusError) as caught:
        await engine.complete(PATH, wrong)
    assert caught.value.status == 400
    assert "max_tokens" in json.loads(caught.value.body)["error"]["message"]
    await engine.aclose()
    await other.aclose()


async def _until_idle(engine: Engine, seconds: float = 10) -> None:
    """Wait until vLLM runs no request; it says itself how many it does."""
    gauge = re.compile(r"^vllm:num_requests_running\{[^}]*\} (\S+)$", re.MULTILINE)
    async with asyncio.timeout(seconds):
        running = 1.0
        while running:
            metrics = (await engine.complete("/metrics", None, method="GET")).body.decode()
            running = sum(map(float, gauge.findall(metrics)))


def _group_members(group: int) -> list[int]:
    """The processes of a process group, zombies aside."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                members.append(int(stat.parent.name))
    return members
