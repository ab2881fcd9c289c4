"""Memory and CPU of a gateway and its children, looked at every second while a run lasts."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

ROLES = {"guardrails.worker": "guard workers", "vllm_main.py": "vLLM", "VLLM::": "vLLM"}


@dataclass(frozen=True)
class Sample:
    """One look: seconds of the run, and by role resident MiB and CPU seconds so far."""

    at: float
    rss_mib: dict[str, float]
    cpu_s: dict[str, float]


class Watcher:
    """Looks at a process and its children in a thread while its block lasts; `samples` is what it saw."""

    def __init__(self, process: psutil.Process, every: float = 1.0) -> None:
        self._process = process
        self._every = every
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def write(self, path: Path) -> None:
        """Keep the samples as JSON lines."""
        path.write_text("".join(json.dumps(vars(sample)) + "\n" for sample in self.samples))

    def _watch(self) -> None:
        began = time.monotonic()
        while True:
            self.samples.append(self._look(time.monotonic() - began))
            if self._end.wait(self._every):
                return

    def _look(self, at: float) -> Sample:
        rss: dict[str, float] = defaultdict(float)
        cpu: dict[str, float] = defaultdict(float)
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                role = "gateway" if process.pid == self._process.pid else _role(process.cmdline())
                times = process.cpu_times()
                rss[role] += process.memory_info().rss / 2**20
                cpu[role] += times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return Sample(round(at, 2), {k: round(v, 2) for k, v in rss.items()}, dict(cpu))


def _role(command: list[str]) -> str:
    line = " ".join(command)
    return next((role for mark, role in ROLES.items() if mark in line), "others")
