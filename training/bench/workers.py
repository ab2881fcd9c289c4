"""Processes under measurement: each makes one turn when it is asked, and tells what the turn took.

A worker reads a line and then works; it prints a JSON line when it is done. So several of them stay loaded
and take turns (A B A B …), and a drift of the machine meets all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRL = "1.12.0"
_PEER = ("torch==2.13.0", f"trl=={TRL}", "transformers==5.19.0", "accelerate==1.15.*", "datasets==5.2.*")


class BenchError(Exception):
    """A measurement that could not be made; the message says what was missing."""


class Worker:
    """One process; `turn` has it work once."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603  the benchmark's own command lines
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRACKIO_DISABLE": "1"},
            )

    def loaded(self) -> None:
        """Wait until it is ready for its first turn."""
        self._answer()

    def turn(self) -> dict[str, Any]:
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        """The next JSON line; whatever else a library prints is passed over."""
        assert self._process.stdout is not None  # noqa: S101  it is a pipe
        for line in self._process.stdout:
            if line.startswith('{"'):
                found: dict[str, Any] = json.loads(line)
                return found
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])
        raise BenchError(f"{self._process.args!r} ended:\n{tail}")


@contextmanager
def workers(commands: dict[str, Sequence[str]], home: Path) -> Iterator[dict[str, Worker]]:
    """Workers by name, ended with the block."""
    running: dict[str, Worker] = {}
    try:
        for name, argv in commands.items():
            running[name] = Worker(argv, home / f"{name.replace(' ', '-')}.log")
        for worker in running.values():
            worker.loaded()
        yield running
    finally:
        for worker in running.values():
            worker.close()


def peer_python(home: Path) -> str:
    """Python of an environment with TRL in it, made once. Raises BenchError when it can't be.

    pip makes it, not uv: torch's CPU build is found through the machine's own pip configuration.
    """
    place = home / f"trl-{TRL}"
    python, done = place / "bin" / "python", place / "installed"
    wanted = " ".join(_PEER)
    if done.exists() and done.read_text() == wanted:
        return str(python)
    for argv in (
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *_cpu_torch(_PEER)],
    ):
        made = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
        if made.returncode:
            raise BenchError(f"could not make TRL's environment: {made.stderr.strip()[-800:]}")
    done.write_text(wanted)
    return str(python)


def _cpu_torch(requirements: Sequence[str]) -> list[str]:
    """The requirements, torch as the build that this environment has (its version names a CPU build)."""
    import torch

    return [f"torch=={torch.__version__}" if r.startswith("torch==") else r for r in requirements]
