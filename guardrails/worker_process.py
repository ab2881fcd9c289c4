"""One worker process, as the gateway sees it: started, connected, given batches, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from guardrails import wire
from guardrails.guard import JobError
from guardrails.servable import ServableError, ServableSpec

WorkerEvent = Literal["started", "loaded", "ready", "died", "killed", "failed", "retired"]

# What a worker may see of the gateway's environment: upstream keys and the like are not its business.
ENVIRONMENT = frozenset(
    {"PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
)
ENVIRONMENT_PREFIXES = ("LC_", "CUDA_", "HF_", "TORCH_", "XDG_", "COVERAGE_")


class Observer:
    """What the runtime reports, for metrics and progress. Override what is of interest; must not block."""

    def on_batch(self, servable: str, size: int, seconds: float) -> None:
        """A batch of `size` distinct payloads came back after `seconds`."""

    def on_answer(self, servable: str, result: Any) -> None:
        """One of its payloads was answered, for all who asked; `result` is the servable's, and not kept."""

    def on_job(self, servable: str, outcome: str, seconds: float) -> None:
        """One caller's job ended: "ok", "cached", "cancelled" or a `JobError` reason, after `seconds`."""

    def on_worker(self, event: WorkerEvent, pid: int, detail: str) -> None:
        """Something happened to a worker; `detail` names a servable or a reason, never a text."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker as it is now. `rss_bytes` is its resident memory, 0 where the system doesn't tell."""

    pid: int
    state: Literal["loading", "idle", "busy", "dead"]
    rss_bytes: int
    batches: int


@dataclass(slots=True)
class Pace:
    """How long a job takes of late: a mean in which the last hundred batches count most."""

    jobs: float = 0.0
    seconds: float = 0.0

    @property
    def seconds_per_job(self) -> float:
        """0 before the first."""
        return self.seconds / self.jobs if self.jobs else 0.0

    def add(self, jobs: int, seconds: float) -> None:
        """A batch of `jobs` took `seconds`."""
        self.jobs = 0.99 * self.jobs + jobs
        self.seconds = 0.99 * self.seconds + seconds


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Times in seconds; `backoff` is the first and the longest pause before a worker is replaced."""

    workers: int = 1
    hang_limit: float = 10.0
    start_limit: float = 120.0
    backoff: tuple[float, float] = (0.2, 10.0)


@dataclass(slots=True, eq=False)
class Job:
    """One payload to compute, for all who asked for it. `deadline` is in the event loop's time."""

    servable: str
    payload: bytes
    deadline: float
    waiters: set[asyncio.Future[Any]] = field(default_factory=set)

    def succeed(self, value: Any) -> None:
        for future in self.waiters:
            if not future.done():
                future.set_result(value)

    def fail(
        self, reason: Literal["timeout", "worker_died", "failed", "overloaded"], detail: str = ""
    ) -> None:
        for future in self.waiters:
            if not future.done():
                future.set_exception(JobError(reason, detail))


class _Frames(asyncio.Protocol):
    """Cuts the byte stream from a worker into messages; never blocks."""

    def __init__(self, on_message: Callable[[Any], None], on_lost: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while (end := wire.frame_end(buffer)) is not None:
            message = wire.load(memoryview(bytes(buffer[wire.HEADER.size : end])))
            del buffer[:end]
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost()

    def send(self, message: Any) -> None:
        """Send, or silently don't once the connection is lost: `on_lost` has told, or is about to."""
        if self._transport is not None:
            self._transport.write(wire.frame(message))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def environment() -> dict[str, str]:
    """A worker's environment: our import path, no network for model hubs, one thread for arithmetic."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)
    }
    return kept | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # they would stand among the lines of the log
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


class Worker:
    """One worker process. It works on one batch at a time; jobs that it loses fail at once."""

    def __init__(
        self,
        settings: PoolSettings,
        observer: Observer,
        ended: Callable[[Job], None],
        wake: Callable[[], None],
        pace: Pace,
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._pace = pace
        self._ended = ended
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._frames = _Frames(self._on_message, self._on_lost)
        self._process: subprocess.Popen[bytes] | None = None
        self._loading = ""
        self._servable = ""
        self._batch: Sequence[Job] = ()
        self._began = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self.batches = 0
        self.retiring = False
        self.ready: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self.lost = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def idle(self) -> bool:
        return self.state == "idle" and not self.retiring

    @property
    def state(self) -> Literal["loading", "idle", "busy", "dead"]:
        if self.lost.is_set():
            return "dead"
        if not self.ready.done():
            return "loading"
        return "busy" if self._batch else "idle"

    async def start(self, specs: Sequence[ServableSpec]) -> dict[str, Any]:
        """Start the process and load `specs`; what they describe. Raises `ServableError`."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._spawn(theirs.fileno())
        ours.setblocking(False)
        await self._loop.create_connection(lambda: self._frames, sock=ours)
        self._observer.on_worker("started", self.pid, "")
        self._frames.send(("load", list(specs)))
        try:
            async with asyncio.timeout(self._settings.start_limit):
                return await self.ready
        except TimeoutError:
            detail = f"the guard worker was not ready after {self._settings.start_limit:g} s"
            raise ServableError(self._loading or "guardrails.worker", detail) from None

    @staticmethod
    def _spawn(descriptor: int) -> subprocess.Popen[bytes]:
        """Not through a thread: the kernel ends a worker with the very thread that started it."""
        return subprocess.Popen(  # noqa: S603  # a fixed command
            # -P: the working folder must not be able to shadow what the gateway itself imported.
            [sys.executable, "-P", "-m", "guardrails.worker", str(descriptor), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            env=environment(),
            start_new_session=True,  # a Ctrl-C in the terminal is for the gateway to handle
        )

    def run(self, servable: str, batch: Sequence[Job]) -> None:
        """Work on `batch`. The worker must be idle."""
        self._servable, self._batch, self._began = servable, batch, self._loop.time()
        self._watch = self._loop.call_later(self._settings.hang_limit, self._check_hang)
        self._frames.send(("run", servable, [job.payload for job in batch]))

    def unload(self, names: Sequence[str]) -> None:
        self._frames.send(("unload", list(names)))

    def retire(self) -> None:
        """End when the batch under way, if any, is answered."""
        self.retiring = True
        if not self._batch:
            self._frames.abort()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._frames.abort()

    async def reap(self) -> str:
        """Kill what is left of the process and wait for its end; how it ended, for people."""
        self.kill()
        if self._process is None:
            return "never started"
        code = await asyncio.to_thread(self._process.wait)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def info(self) -> WorkerInfo:
        rss = 0
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/statm", "rb") as statm:
            rss = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return WorkerInfo(self.pid, self.state, rss, self.batches)

    def _check_hang(self) -> None:
        due = max(self._began + self._settings.hang_limit, max(job.deadline for job in self._batch))
        if self._loop.time() < due:
            self._watch = self._loop.call_at(due, self._check_hang)
            return
        self._observer.on_worker("killed", self.pid, f"stuck in {self._servable!r}")
        self.kill()

    def _take_batch(self) -> Sequence[Job]:
        batch, self._batch = self._batch, ()
        if self._watch is not None:
            self._watch.cancel()
        for job in batch:
            self._ended(job)
        return batch

    def _on_message(self, message: Any) -> None:
        kind, *arguments = message
        if kind == "done":
            batch = self._take_batch()
            self.batches += 1
            took = self._loop.time() - self._began
            self._pace.add(len(batch), took)
            self._observer.on_batch(self._servable, len(batch), took)
            for job, (ok, value) in zip(batch, arguments[0], strict=True):
                if ok:
                    self._observer.on_answer(self._servable, value)
                    job.succeed(value)
                else:
                    job.fail("failed", value)
            if self.retiring:
                self._frames.abort()
            else:
                self._wake()
        elif kind == "loading":
            (self._loading,) = arguments
        elif kind == "loaded":
            name, seconds = arguments
            self._observer.on_worker("loaded", self.pid, f"{name} in {seconds:.1f} s")
        elif kind == "ready" and not self.ready.done():
            self.ready.set_result(arguments[0])
        elif kind == "load_failed" and not self.ready.done():
            self.ready.set_exception(ServableError(*arguments))

    def _on_lost(self) -> None:
        self.lost.set()
        for job in self._take_batch():
            job.fail("worker_died", f"while running {self._servable!r}")
        if not self.ready.done():
            name = self._loading or "guardrails.worker"
            self.ready.set_exception(ServableError(name, "the guard worker died while loading it"))
            self.ready.exception()  # whoever started the worker may have been cancelled: no complaint then
