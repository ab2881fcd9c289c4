"""Servables that behave badly on demand, for the tests of the runtime. They run in real workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


class Scripted:
    """Does what a payload says: a string is answered in upper case, a pair is an order."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def predict(self, batch: list[Any]) -> list[Any]:
        if self.trace:
            with open(self.trace, "a") as file:
                file.write(f"{os.getpid()} {len(batch)} {batch!r}\n")
        return [self._one(payload) for payload in batch]

    def _one(self, payload: Any) -> Any:
        match payload:
            case ("sleep", seconds):
                time.sleep(seconds)
                return os.getpid()
            case ("raise", message):
                raise ValueError(message)
            case ("kill", signal_number):
                os.kill(os.getpid(), signal_number)
                time.sleep(60)
            case ("unpicklable",):
                return lambda: None
            case ("pid",):
                return os.getpid()
            case ("environment",):
                return dict(os.environ)
            case ("signals",):
                return [signal.getsignal(s) == signal.SIG_IGN for s in (signal.SIGINT, signal.SIGTERM)]
        return payload.upper()

    def describe(self) -> dict[str, int]:
        return {"pid": os.getpid()}


def scripted(trace: str = "") -> Scripted:
    return Scripted(trace)


def broken(why: str) -> Scripted:
    raise FileNotFoundError(f"no weights: {why}")


def crashing() -> Scripted:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


def crashing_the_second_time(marker: str) -> Scripted:
    """Loads once; as long as `marker` is there afterwards, dies when it is loaded again."""
    path = Path(marker)
    if path.exists():
        os._exit(3)
    path.touch()
    return Scripted("")


def slow_to_load(seconds: float) -> Scripted:
    time.sleep(seconds)
    return Scripted("")


class TooShort:
    def predict(self, batch: list[Any]) -> list[Any]:
        return []


def too_short() -> TooShort:
    return TooShort()
