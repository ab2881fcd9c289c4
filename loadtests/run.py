"""Start what a run needs, let locust load it from a process of its own, and give back what was seen."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.processes import ROOT, BenchError, Server, free_port, serve
from loadtests.record import Seen, read
from loadtests.shapes import Plan
from loadtests.watch import Sample, Watcher

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def cores() -> tuple[str | None, int | None]:
    """The cores for the gateway with all its children, as taskset takes them, and the one for the load.

    The load has one to itself, so that more of it takes nothing from what is measured; None on one core.
    """
    count = os.cpu_count() or 1
    return (f"0-{count - 2}", count - 1) if count > 1 else (None, None)


def keep_to_the_load_core() -> None:
    """This process, and locust which it will start, take nothing from the gateway."""
    _, mine = cores()
    if mine is not None:
        os.sched_setaffinity(0, {mine})


@contextlib.contextmanager
def embedded_gateway(home: Path) -> Iterator[Server]:
    """`keel serve` as it comes: the shipped policies and a vLLM of its own, on a free loopback port.

    Raises `BenchError` with the end of its log where it does not get ready.
    """
    port = free_port()
    argv = [sys.executable, "-m", "service.cli", "serve", "--host", "127.0.0.1", "--port", str(port)]
    env = {"KEEL_STATE_DIR": str(home / "state"), "OMP_NUM_THREADS": "1"}
    log = home / "gateway.log"
    with serve(
        argv, port=port, ready="/health/ready", log=log, core=cores()[0], env=env, patience=300
    ) as server:
        yield server


@dataclass(frozen=True)
class Run:
    """What one run of locust saw: its requests, and the gateway's memory and CPU where it is ours."""

    requests: list[Seen]
    samples: list[Sample]


@dataclass(frozen=True)
class Load:
    """What is to be loaded, and how. `callers` are names of classes in `loadtests.users`; none: the mix.

    With `rate`, requests arrive by themselves, so many a second, for as long as the plan lasts.
    """

    plan: Plan
    policy: str = "standard"
    callers: tuple[str, ...] = ("Chat", "Stream", "LongContext", "Blocked")
    think: float = 0.0
    rate: float = 0.0
    seed: int = 0

    def argv(self, url: str, record: Path) -> list[str]:
        """locust's command line."""
        return [
            *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
            *("--host", url, "--exit-code-on-error", "0", "--stop-timeout", "60", "--loglevel", "WARNING"),
            *("--plan", str(self.plan), "--record", str(record), "--policy", self.policy),
            *("--think", f"{self.think:g}", "--rate", f"{self.rate:g}", "--seed", str(self.seed)),
            *(("Arrivals",) if self.rate else self.callers),
        ]


def run(load: Load, url: str, home: Path, name: str, server: Server | None = None) -> Run:
    """Load `url` and wait for the end. `server` is the gateway there, where it is ours to watch.

    Raises `BenchError` where locust could not run.
    """
    home.mkdir(parents=True, exist_ok=True)
    record = home / f"{name}.jsonl"
    with Watcher(server.process) if server else contextlib.nullcontext() as watcher:
        _locust(load.argv(url, record), home / f"{name}.log", load.plan.seconds)
    samples = watcher.samples if watcher else []
    if watcher:
        watcher.write(home / f"{name}.samples.jsonl")
    return Run(list(read(record)), samples)


def _locust(argv: Sequence[str], log: Path, seconds: float) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        done = subprocess.run(  # noqa: S603 - our own command line
            argv, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=ROOT, timeout=seconds + 180, check=False
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise BenchError(f"locust exited with {done.returncode}:\n{tail}")
