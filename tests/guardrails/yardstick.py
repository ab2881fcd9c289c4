"""Processor time in units of the machine at hand, so that a slow or busy one doesn't decide a test."""

from __future__ import annotations

import time
from collections.abc import Callable


def cost(work: Callable[[], object], rounds: int = 5) -> float:
    """The thread's processor time for `work`, in seconds: the least of several rounds."""
    return min(_once(work) for _ in range(rounds))


def yardstick() -> float:
    """What a fixed piece of work costs here and now: about a millisecond on a core of the 2020s."""
    return cost(lambda: sum(i * i % 7 for i in range(15_000)))


def _once(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started
