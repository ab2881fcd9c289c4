"""Servers under measurement: started on one core, waited for, read (CPU, memory), stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SERVER_CORE = 0
LOAD_CORE = 1
ROOT = Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """A measurement that could not be made; the message says what was missing and how to get it."""


def free_port() -> int:
    """A loopback port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running server: its process group's leader, and where it listens."""

    process: psutil.Process
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of the process and its children so far."""
        times = [p.cpu_times() for p in self.family()]
        return float(sum(t.user + t.system for t in times))

    def resident_mib(self, *, children: bool = False) -> float:
        members = self.family() if children else [self.process]
        return float(sum(p.memory_info().rss for p in members)) / 2**20


@contextlib.contextmanager
def serve(
    argv: Sequence[str],
    *,
    port: int,
    ready: str,
    log: Path,
    core: int | str | None = SERVER_CORE,
    env: Mapping[str, str] | None = None,
    patience: float = 120.0,
) -> Iterator[Server]:
    """Run `argv` on `core` (or a list of them, as taskset takes it) until the block ends; entered once
    `ready` (a path) answers 200.

    Raises `BenchError` with the end of its log when it exits or does not answer within `patience` seconds.
    """
    with log.open("wb") as out:
        child = subprocess.Popen(  # noqa: S603 - the benchmark's own command lines
            [*([] if core is None else ["taskset", "-c", str(core)]), *argv],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        _await_ready(child, f"http://127.0.0.1:{port}{ready}", log, patience)
        yield Server(psutil.Process(child.pid), port)
    finally:
        _stop(child)


def _await_ready(child: subprocess.Popen[bytes], url: str, log: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise BenchError(f"{child.args!r} exited with {child.returncode}:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:  # noqa: S310 - loopback
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    raise BenchError(f"{url} did not answer within {patience:.0f} s:\n{_tail(log)}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    for sign, patience in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
            return


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def gateway_argv(port: int, upstream: str, policies: Path) -> list[str]:
    """The command line of a gateway in front of `upstream`."""
    return [
        *(sys.executable, "-m", "service.cli", "serve"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--upstream", f"{upstream}/v1", "--model", "mock", "--policies", str(policies)),
    ]
