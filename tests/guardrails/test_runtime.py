"""The runtime against real worker processes that crash, hang and misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from guardrails.guard import JobError
from guardrails.runtime import Observer, Runtime, ServableError, ServableSpec
from tests.guardrails.yardstick import yardstick

HERE = "tests.guardrails.servables"
ECHO = ServableSpec("echo", f"{HERE}:scripted")
pytestmark = pytest.mark.xdist_group("guard-workers")


class Recorder(Observer):
    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.jobs: list[tuple[str, str]] = []
        self.answers: list[Any] = []
        self.events: list[tuple[str, str]] = []

    def on_batch(self, servable: str, size: int, seconds: float) -> None:
        assert seconds >= 0
        self.batches.append((servable, size))

    def on_answer(self, servable: str, result: Any) -> None:
        self.answers.append(result)

    def on_job(self, servable: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.jobs.append((servable, outcome))

    def on_worker(self, event: str, pid: int, detail: str) -> None:
        self.events.append((event, detail))


@contextlib.asynccontextmanager
async def running(*specs: ServableSpec, **settings: Any) -> AsyncIterator[Runtime]:
    runtime = Runtime(**{"backoff": (0.02, 0.1), **settings})
    try:
        await runtime.start(specs)
        yield runtime
    finally:
        await runtime.aclose()


async def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # other processes set no events
            await asyncio.sleep(0.01)


async def reason_of(job: Awaitable[Any]) -> str:
    with pytest.raises(JobError) as caught:
        await job
    return caught.value.reason


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


async def test_answers_describes_and_reports_memory() -> None:
    async with running(ECHO) as runtime:
        assert await runtime.run("echo", "a", 5) == "A"
        (worker,) = runtime.workers()
        assert runtime.describe("echo") == {"pid": worker.pid}
        assert worker.state == "idle"
        assert worker.batches == 1
        assert worker.rss_bytes > 1 << 20
        assert runtime.healthy
        assert await reason_of(runtime.run("unknown", "a", 5)) == "failed"
        with pytest.raises(ServableError, match="unknown"):
            runtime.describe("unknown")


async def test_a_wait_is_expected_by_the_jobs_that_wait_and_how_long_they_take() -> None:
    async with running(ECHO) as runtime:
        assert runtime.expected_wait(coming=5) == 0.0  # nothing is known yet
        await runtime.run("echo", ("sleep", 0.02), 5)
        assert runtime.expected_wait() == 0.0
        held = [asyncio.create_task(runtime.run("echo", ("sleep", 0.2 + i / 1e6), 5)) for i in range(2)]
        await eventually(lambda: runtime.workers()[0].state == "busy")
        waiting = [asyncio.create_task(runtime.run("echo", f"{i}", 5)) for i in range(3)]
        await eventually(lambda: runtime.queue_depth == 3)
        assert runtime.expected_wait() >= 3 * 0.02
        assert runtime.expected_wait(coming=6) == 2 * runtime.expected_wait(coming=2)
        await asyncio.gather(*held, *waiting)


async def test_a_worker_sees_no_secrets_and_leaves_signals_to_the_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEEL_ADMIN_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    async with running(ECHO) as runtime:
        environment = await runtime.run("echo", ("environment",), 5)
        assert not {"KEEL_ADMIN_KEY", "OPENAI_API_KEY"} & environment.keys()
        assert environment["OMP_NUM_THREADS"] == "1"
        assert environment["HF_HUB_OFFLINE"] == "1"
        assert await runtime.run("echo", ("signals",), 5) == [True, True]


async def test_jobs_that_wait_share_a_batch_and_equal_ones_are_computed_once(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    recorder = Recorder()
    spec = ServableSpec("echo", f"{HERE}:scripted", {"trace": str(trace)})
    async with running(spec, max_batch=4, observer=recorder) as runtime:
        texts = ["a", "b", "a", "c", "a", "d", "e", "a"]
        assert await asyncio.gather(*(runtime.run("echo", t, 5) for t in texts)) == [t.upper() for t in texts]
        assert [size for _, size in recorder.batches] == [4, 1]
        assert recorder.answers == ["A", "B", "C", "D", "E"]  # each once, whoever asked
        first = asyncio.create_task(runtime.run("echo", ("sleep", 0.3), 5))
        await asyncio.sleep(0.1)
        assert await runtime.run("echo", ("sleep", 0.3), 5) == await first  # joined while it ran
        assert [size for _, size in recorder.batches] == [4, 1, 1]
        assert recorder.jobs.count(("echo", "ok")) == 10


async def test_recent_results_of_a_servable_that_allows_it_are_given_again() -> None:
    recorder = Recorder()
    spec = ServableSpec("echo", f"{HERE}:scripted", cache=True)
    async with running(spec, observer=recorder, cache_entries=2) as runtime:
        for text in ["a", "b", "a", "c", "b", "a"]:
            assert await runtime.run("echo", text, 5) == text.upper()
        outcomes = [outcome for _, outcome in recorder.jobs]
        assert outcomes == ["ok", "ok", "cached", "ok", "ok", "ok"]
        assert await reason_of(runtime.run("echo", ("raise", "x"), 5)) == "failed"
        assert await reason_of(runtime.run("echo", ("raise", "x"), 5)) == "failed"


async def test_several_workers_share_the_work() -> None:
    async with running(ECHO, workers=2) as runtime:
        pids = await asyncio.gather(*(runtime.run("echo", ("sleep", s / 100), 5) for s in range(10, 14)))
        assert set(pids) == {worker.pid for worker in runtime.workers()}


async def test_no_servable_starves_another() -> None:
    other = ServableSpec("other", f"{HERE}:scripted")
    async with running(ECHO, other, max_batch=2) as runtime:
        done: list[str] = []

        async def ask(servable: str, payload: Any) -> None:
            await runtime.run(servable, payload, 10)
            done.append(servable)

        await asyncio.gather(*(ask("echo", f"x{i}") for i in range(12)), ask("other", "y"))
        assert done.index("other") <= 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_worker_that_dies_fails_its_batch_at_once_and_is_replaced(number: int) -> None:
    recorder = Recorder()
    async with running(ECHO, observer=recorder) as runtime:
        before = runtime.workers()[0].pid
        jobs = [runtime.run("echo", payload, 30) for payload in [("kill", number), "same batch"]]
        assert {await reason_of(job) for job in jobs[:1]} == {"worker_died"}
        assert await jobs[1] == "SAME BATCH"  # asked after the death, answered by the replacement
        assert runtime.workers()[0].pid != before
        assert gone(before)
        assert ("died", f"killed by {signal.Signals(number).name}") in recorder.events


async def test_killed_from_outside_while_busy_and_while_idle() -> None:
    async with running(ECHO) as runtime:
        jobs = [asyncio.create_task(runtime.run("echo", ("sleep", 30 + i), 60)) for i in range(3)]
        await eventually(lambda: runtime.workers()[0].state == "busy")
        os.kill(runtime.workers()[0].pid, signal.SIGKILL)
        assert [await reason_of(job) for job in jobs] == ["worker_died"] * 3
        await eventually(lambda: runtime.healthy)
        pid = runtime.workers()[0].pid
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not runtime.healthy)
        await eventually(lambda: runtime.healthy and runtime.workers()[0].pid != pid)
        assert await runtime.run("echo", "back", 5) == "BACK"


async def test_a_hung_servable_times_out_and_its_worker_is_killed() -> None:
    recorder = Recorder()
    async with running(ECHO, hang_limit=0.5, observer=recorder) as runtime:
        async with asyncio.timeout(30):  # half of what the servable would take
            assert await reason_of(runtime.run("echo", ("sleep", 60), 0.1)) == "timeout"
        assert await runtime.run("echo", "next", 15) == "NEXT"
        assert ("killed", "stuck in 'echo'") in recorder.events


async def test_a_slow_job_that_someone_still_waits_for_is_not_killed() -> None:
    async with running(ECHO, hang_limit=0.1) as runtime:
        pid = runtime.workers()[0].pid
        assert await runtime.run("echo", ("sleep", 0.6), 10) == pid


async def test_expired_and_cancelled_jobs_never_reach_a_worker(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    recorder = Recorder()
    spec = ServableSpec("echo", f"{HERE}:scripted", {"trace": str(trace)})
    async with running(spec, observer=recorder) as runtime:
        busy = asyncio.create_task(runtime.run("echo", ("sleep", 0.5), 5))
        await asyncio.sleep(0.1)
        cancelled = asyncio.create_task(runtime.run("echo", "cancelled", 5))
        await asyncio.sleep(0)
        assert runtime.queue_depth == 1
        cancelled.cancel()
        assert await reason_of(runtime.run("echo", "expired", 0.05)) == "timeout"
        assert runtime.queue_depth == 0
        await busy
        assert await runtime.run("echo", "wanted", 5) == "WANTED"
        seen = trace.read_text()
        assert "wanted" in seen
        assert "cancelled" not in seen
        assert "expired" not in seen
        assert ("echo", "cancelled") in recorder.jobs


async def test_one_caller_giving_up_leaves_the_others_their_answer() -> None:
    async with running(ECHO) as runtime:
        patient = asyncio.create_task(runtime.run("echo", ("sleep", 0.4), 5))
        assert await reason_of(runtime.run("echo", ("sleep", 0.4), 0.05)) == "timeout"
        assert await patient == runtime.workers()[0].pid


async def test_overload_is_refused_at_once_by_count_and_by_bytes() -> None:
    async with running(ECHO, max_queue=2, max_queue_bytes=4096) as runtime:
        busy = asyncio.create_task(runtime.run("echo", ("sleep", 0.5), 5))
        await eventually(lambda: runtime.workers()[0].state == "busy")
        assert await reason_of(runtime.run("echo", "x" * 5000, 5)) == "overloaded"
        waiting = [asyncio.create_task(runtime.run("echo", text, 5)) for text in "ab"]
        await asyncio.sleep(0)
        assert await reason_of(runtime.run("echo", "c", 5)) == "overloaded"
        assert await asyncio.gather(*waiting) == ["A", "B"]
        await busy


async def test_what_a_servable_raises_fails_its_own_job_only_and_quotes_nothing() -> None:
    async with running(ECHO) as runtime:
        results = await asyncio.gather(
            *(runtime.run("echo", p, 5) for p in ["a", ("raise", "prompt text"), "b", ("unpicklable",)]),
            return_exceptions=True,
        )
        assert isinstance(results[1], JobError)
        assert results[1].reason == "failed"
        assert "ValueError" in str(results[1])
        assert "prompt text" not in str(results[1])
        assert isinstance(results[3], JobError)
        assert results[3].reason == "failed"
        assert [results[0], results[2]] == ["A", "B"]
        assert await runtime.run("echo", "still here", 5) == "STILL HERE"


async def test_a_wrong_number_of_results_is_a_failure() -> None:
    async with running(ServableSpec("short", f"{HERE}:too_short")) as runtime:
        assert await reason_of(runtime.run("short", "a", 5)) == "failed"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ServableSpec("bad", f"{HERE}:broken", {"why": "gone"}), "'bad'.*no weights: gone"),
        (ServableSpec("missing", "tests.guardrails.nowhere:factory"), "'missing'.*nowhere"),
        (ServableSpec("crash", f"{HERE}:crashing"), "crash"),
    ],
)
async def test_a_servable_that_cannot_load_is_named_and_changes_nothing(
    spec: ServableSpec, message: str
) -> None:
    with pytest.raises(ServableError, match=message):
        async with running(spec):
            pass
    async with running(ECHO) as runtime:
        pid = runtime.workers()[0].pid
        with pytest.raises(ServableError, match=message):
            await runtime.ensure([ECHO, spec])
        assert await runtime.run("echo", ("pid",), 5) == pid
        assert await reason_of(runtime.run(spec.name, "x", 5)) == "failed"


async def test_a_servable_that_takes_too_long_to_load() -> None:
    with pytest.raises(ServableError, match=r"'slow'.*0\.3 s"):
        async with running(ServableSpec("slow", f"{HERE}:slow_to_load", {"seconds": 60}), start_limit=0.3):
            pass


async def test_new_servables_load_while_the_old_ones_answer() -> None:
    slow = ServableSpec("slow", f"{HERE}:slow_to_load", {"seconds": 0.5})
    async with running(ECHO, linger=0.2) as runtime:
        old = runtime.workers()[0].pid
        change = asyncio.create_task(runtime.ensure([ECHO, slow]))
        answered = []
        while not change.done():
            pid = await runtime.run("echo", ("sleep", 0), 30)
            answered += [] if change.done() else [pid]
            await asyncio.sleep(0.01)
        await change
        assert answered and set(answered) == {old}
        assert await runtime.run("slow", "x", 5) == "X"
        await eventually(lambda: gone(old))
        await runtime.ensure([slow])
        assert await runtime.run("echo", "lingers", 5) == "LINGERS"
        await asyncio.sleep(0.3)
        assert await reason_of(runtime.run("echo", "unloaded", 5)) == "failed"
        assert await runtime.run("slow", "y", 5) == "Y"


async def test_a_retired_worker_finishes_what_it_is_at() -> None:
    async with running(ECHO) as runtime:
        old = runtime.workers()[0].pid
        job = asyncio.create_task(runtime.run("echo", ("sleep", 1.5), 10))
        await eventually(lambda: runtime.workers()[0].state == "busy")
        await runtime.ensure([ECHO, ServableSpec("other", f"{HERE}:scripted")])
        assert runtime.workers()[0].pid != old
        assert await job == old


async def test_a_replacement_that_cannot_load_is_tried_again(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    recorder = Recorder()
    spec = ServableSpec("fragile", f"{HERE}:crashing_the_second_time", {"marker": str(marker)})
    async with running(spec, observer=recorder) as runtime:
        os.kill(runtime.workers()[0].pid, signal.SIGKILL)
        await eventually(lambda: sum(event == "failed" for event, _ in recorder.events) >= 2)
        assert not runtime.healthy
        assert await reason_of(runtime.run("fragile", "x", 0.05)) == "timeout"
        marker.unlink()
        assert await runtime.run("fragile", "y", 15) == "Y"


async def test_closing_answers_who_waits_and_leaves_no_process() -> None:
    async with running(ECHO) as runtime:
        pid = runtime.workers()[0].pid
        jobs = [asyncio.create_task(runtime.run("echo", ("sleep", 30 + i), 60)) for i in range(2)]
        jobs.append(asyncio.create_task(runtime.run("echo", "queued", 60)))
        await eventually(lambda: runtime.workers()[0].state == "busy")
        await runtime.aclose()
        assert {await reason_of(job) for job in jobs} <= {"worker_died", "failed"}
        assert gone(pid)
        assert not runtime.healthy
        assert await reason_of(runtime.run("echo", "late", 1)) == "failed"


async def test_workers_do_not_outlive_a_gateway_that_is_killed_while_they_compute() -> None:
    gateway = textwrap.dedent("""
        import asyncio
        from guardrails.runtime import Runtime, ServableSpec
        async def main():
            runtime = Runtime(workers=2)
            await runtime.start([ServableSpec("echo", "tests.guardrails.servables:scripted")])
            job = asyncio.create_task(runtime.run("echo", ("sleep", 600), 600))
            while not any(w.state == "busy" for w in runtime.workers()):
                await asyncio.sleep(0.01)
            print(*(w.pid for w in runtime.workers()), flush=True)
            await job
        asyncio.run(main())
    """)
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", gateway], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(pids) == 2
    await eventually(lambda: all(gone(pid) for pid in pids), 5)


async def test_a_job_costs_the_event_loop_well_under_a_millisecond() -> None:
    """Measured as the gateway's processor time, so that a busy machine doesn't decide the outcome."""
    async with running(ECHO) as runtime:
        for texts in ([f"{i}" * 300 for i in range(200)], ["x" * 200_000 + f"{i}" for i in range(20)]):
            began = time.process_time()
            for text in texts:
                await runtime.run("echo", text, 10)
            assert (time.process_time() - began) / len(texts) < 2 * yardstick()
