"""A vLLM server as a child of the gateway: started, watched, restarted, and never left behind.

    starting ──healthy──► ready ──dies or hangs──► restarting ──healthy──► ready
       │                    │                          │
       └─ dies: failed      └─ stop() ► stopping ► stopped   └─ too often in a row: failed

A server that has never been ready is not started again: what kept it from starting (a wrong checkpoint,
too little memory, an unknown argument) would keep it from starting the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from service.engine.client import UpstreamClient
from service.engine.config import TimeLimits, UpstreamConfig
from service.engine.errors import UpstreamError, UpstreamStatusError
from service.engine.observer import ChildState, EngineObserver, NullObserver
from service.engine.ports import free_port, listens
from service.engine.tasks import beside
from service.engine.vllm_command import VllmConfig, command, environment, warden
from service.engine.vllm_logs import LogCapture, phase_of

logger = structlog.get_logger("keel.engine")

_POLL_SECONDS: Final = 0.2
_PORT_ATTEMPTS: Final = 5
_PORT_TAKEN: Final = ("Address already in use", "[Errno 98]")
_PROBE_SECONDS: Final = 10.0


class VllmFailed(Exception):
    """vLLM could not be started or kept running; the message ends with its last lines of output."""


class _Ended(Exception):
    """The child is gone or of no use any more; the message says why."""


class _Output(asyncio.Protocol):
    """The read end of the child's standard output and error."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class ManagedVllm:
    """One supervised vLLM server on a free loopback port, behind an API key made for it.

    `on_phase` is told in words how far a start has got. Callbacks given to `subscribe` are called on every
    change of `state`, on the event loop.
    """

    def __init__(
        self,
        config: VllmConfig,
        *,
        observer: EngineObserver | None = None,
        on_phase: Callable[[str], None] = lambda phase: None,
    ) -> None:
        self.config = config
        self.name = config.served_name
        self.api_key = secrets.token_urlsafe(32)
        self.state: ChildState = "stopped"
        self.failure: str | None = None  # why the last child ended
        self.restarts = 0
        self.port = 0
        self.adapters: dict[str, Path] = {}  # what it has loaded, and begins with when it is started again
        self._observer: EngineObserver = observer or NullObserver()
        self._on_phase = on_phase
        self._subscribers: list[Callable[[], None]] = []
        self._logs = LogCapture(self.name)
        self._process: asyncio.subprocess.Process | None = None
        self._pipe: asyncio.ReadTransport | None = None
        self._output: _Output | None = None
        self._phase = ""
        self._warden: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._suspected = asyncio.Event()
        self._changed = asyncio.Condition()
        self._notifiers: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's process id while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it serves. Turns false with the child's death, not with the news of it."""
        return self.state == "ready" and not self._suspected.is_set() and self._alive()

    @property
    def last_lines(self) -> list[str]:
        """The end of the server's output, without anything that may quote a request."""
        return self._logs.last()

    def suspect(self) -> None:
        """Somebody's connection to it broke: it counts as not ready until it has answered a health check.

        A dying process closes its sockets before the kernel calls it dead.
        """
        if self.state == "ready":
            self._suspected.set()

    def renew(self) -> None:
        """End the process at once; it is started again, from what `config` says by then."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def subscribe(self, callback: Callable[[], None]) -> None:
        self._subscribers.append(callback)

    async def start(self) -> None:
        """Begin to start the server and to watch it; returns at once, see `wait_ready`."""
        if self._supervisor is None or self._supervisor.done():
            self._enter("starting")
            self._supervisor = asyncio.create_task(self._supervise(), name=f"vllm-{self.name}")

    async def wait_ready(self, seconds: float | None = None) -> None:
        """Wait until it serves. Raises `VllmFailed` when it never will, `TimeoutError` after `seconds`."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(
                lambda: self.ready or self.state in ("failed", "stopping", "stopped")
            )
        if self.state in ("failed", "stopping", "stopped"):
            raise VllmFailed(self.failure or f"vLLM for {self.name!r} is {self.state}")

    async def stop(self) -> None:
        """End the server: SIGTERM, and after `term_seconds` SIGKILL to all of its processes."""
        if self._supervisor is None:
            return
        if self.state != "failed":
            self._enter("stopping")
        self._logs.ending = True
        self._supervisor.cancel()
        await asyncio.wait({self._supervisor})
        self._supervisor = None
        self._enter("stopped")
        await asyncio.gather(*self._notifiers)

    # Supervision

    async def _supervise(self) -> None:
        try:
            await self._keep_serving()
        finally:
            await self._end_process(self.config.term_seconds)

    async def _keep_serving(self) -> None:
        in_a_row = 0
        while True:
            served_for = 0.0
            try:
                served_for = await self._life()
            except Exception as error:
                logger.exception("vllm_supervision_failed", child=self.name)
                self.failure = f"vLLM for {self.name!r} could not be supervised: {error}"
            await self._end_process(0)
            in_a_row = 1 if served_for >= self.config.stable_seconds else in_a_row + 1
            if self.state == "starting" or in_a_row > self.config.max_restarts:
                self._enter("failed")
                return
            self.restarts += 1
            self._enter("restarting")
            backoff = self.config.backoff_seconds * 2.0 ** min(in_a_row - 1, 32)
            await asyncio.sleep(min(backoff, self.config.max_backoff_seconds))

    async def _life(self) -> float:
        """One child from its start to its end; returns for how many seconds it served."""
        loop = asyncio.get_running_loop()
        ready_at = loop.time()
        served = False
        try:
            process = await self._start_on_a_free_port()
            ready_at, served = loop.time(), True
            self._enter("ready")
            await self._watch(process)
        except _Ended as ended:
            logger.error("vllm_ended", child=self.name, reason=str(ended), served=served)
            self.failure = self._describe(str(ended))
            if self.state == "ready":
                self._enter("restarting")
                await self._last_words()
                self.failure = self._describe(str(ended))
        return loop.time() - ready_at if served else 0.0

    async def _start_on_a_free_port(self) -> asyncio.subprocess.Process:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self._logs.clear()
            self.port = free_port()
            self._phase = "importing vLLM"
            self._on_phase(self._phase)
            process = await self._spawn()
            try:
                await self._until_healthy(process)
                return process
            except _Ended:
                # Between finding the port and binding it another process may have taken it.
                if attempt == _PORT_ATTEMPTS or not self._logs.mentions(*_PORT_TAKEN):
                    raise
                await self._end_process(0)
        raise AssertionError("the last attempt returns or raises")

    async def _spawn(self) -> asyncio.subprocess.Process:
        # Not asyncio's own pipe: with that, waiting for the process also waits for its engine process, which
        # inherits the pipe and lives on.
        read_end, write_end = os.pipe()
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *command(self.config, self.port, self.adapters),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=environment(self.config, self.api_key),
                start_new_session=True,  # a terminal's Ctrl-C is for the gateway, which then drains
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        loop = asyncio.get_running_loop()
        self._pipe, self._output = await loop.connect_read_pipe(
            lambda: _Output(self._take_output), os.fdopen(read_end, "rb", buffering=0)
        )
        logger.info("vllm_started", child=self.name, pid=process.pid, port=self.port)
        self._warden = await asyncio.create_subprocess_exec(
            *warden(process.pid), stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        return process

    async def _until_healthy(self, process: asyncio.subprocess.Process) -> None:
        probe = self._probe()
        await probe.open()
        try:
            async with asyncio.timeout(self.config.start_seconds):
                # Whoever took the port before vLLM could would answer too, and be given key and prompts.
                while not (await self._is_healthy(probe) and listens(process.pid, self.port)):
                    if not self._alive():
                        code = await process.wait()
                        await self._last_words()
                        raise _Ended(f"ended with {_exit(code)} while starting")
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise _Ended(f"did not become ready within {self.config.start_seconds:g} s") from None
        finally:
            await probe.close()
        self._logs.serving = True

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the child's end. Raises `_Ended`."""
        loop = asyncio.get_running_loop()
        probe = self._probe()
        await probe.open()
        answered_at = loop.time()
        try:
            async with beside(process.wait()) as exited:
                while not exited.done():
                    await self._until_next_look(exited)
                    if exited.done():
                        break
                    if await self._look(probe, exited):
                        answered_at = loop.time()
                        self._clear_suspicion()
                    elif loop.time() - answered_at > self.config.hung_seconds:
                        raise _Ended(f"did not answer its health check for {self.config.hung_seconds:g} s")
                raise _Ended(f"ended with {_exit(exited.result())}")
        finally:
            await probe.close()

    async def _look(self, probe: UpstreamClient, exited: asyncio.Task[int]) -> bool:
        """A health check, given up when the child ends.

        A forked engine process outlives its server for a moment and holds the server's listening socket: a
        check that begins then is never answered.
        """
        async with beside(self._is_healthy(probe)) as look:
            await asyncio.wait({exited, look}, return_when=asyncio.FIRST_COMPLETED)
            return look.done() and look.result()

    async def _until_next_look(self, exited: asyncio.Task[int]) -> None:
        """Wait for the child's end, the time of the next health check, or a suspicion."""
        if self._suspected.is_set():
            await asyncio.wait({exited}, timeout=_POLL_SECONDS)
            return
        async with beside(self._suspected.wait()) as suspicion:
            await asyncio.wait(
                {exited, suspicion}, timeout=self.config.health_seconds, return_when=asyncio.FIRST_COMPLETED
            )

    def _clear_suspicion(self) -> None:
        if self._suspected.is_set():
            self._suspected.clear()
            self._wake_waiters()

    def _probe(self) -> UpstreamClient:
        times = TimeLimits(connect=2, total=min(_PROBE_SECONDS, self.config.hung_seconds))
        return UpstreamClient(UpstreamConfig(self.name, self.base_url, api_key=self.api_key), times)

    async def _is_healthy(self, probe: UpstreamClient) -> bool:
        try:
            await probe.complete("/health", None, method="GET")
        except UpstreamStatusError as error:
            if error.status == 503:  # vLLM's own word for a dead engine: the server will not recover
                raise _Ended("reported that its engine is dead") from None
            return False
        except UpstreamError:
            return False
        return True

    def _take_output(self, data: bytes) -> None:
        for line in self._logs.feed(data):
            phase = None if self._logs.serving else phase_of(line)
            if phase is not None and phase != self._phase:
                self._phase = phase
                self._on_phase(phase)

    async def _last_words(self) -> None:
        """Give the output of a dead child a moment to arrive."""
        if self._output is not None:
            await asyncio.wait({self._output.ended}, timeout=0.5)

    # The process

    def _alive(self) -> bool:
        """Whether the child runs, asked of the kernel: the event loop learns of a death a little later."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        try:
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return ended is None

    async def _end_process(self, grace: float) -> None:
        """SIGTERM where there is grace, then SIGKILL to whatever is left of the process group."""
        process, warden = self._process, self._warden
        if process is None:
            return
        if grace > 0 and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if self._pipe is not None:
            self._pipe.close()
        if warden is not None:
            with contextlib.suppress(ProcessLookupError):
                warden.kill()
            await warden.wait()
        self._process = self._warden = self._pipe = self._output = None

    def _enter(self, state: ChildState) -> None:
        if state == self.state:
            return
        self.state = state
        self._suspected.clear()
        logger.info("vllm_state", child=self.name, state=state, restarts=self.restarts)
        self._observer.child(self.name, state, self.restarts)
        for callback in self._subscribers:
            callback()
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        notifier = asyncio.get_running_loop().create_task(self._notify())
        self._notifiers.add(notifier)
        notifier.add_done_callback(self._notifiers.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _describe(self, what: str) -> str:
        lines = "\n  ".join(self._logs.last()) or "(none)"
        return f"vLLM for {self.name!r} ({self.config.model}) {what}. Its last lines of output:\n  {lines}"


def _exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"
