"""Work for the tests of batches; a module, so that other processes find it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Refusal(Exception):
    """What a row may fail with."""


def square(value: int) -> dict[str, Any]:
    if value < 0:
        raise Refusal(f"{value} is negative")
    return {"square": value * value, "pid": os.getpid()}


def slow_first(value: int) -> dict[str, Any]:
    time.sleep(0.5 if value == 0 else 0.0)
    return {"value": value}


@dataclass(frozen=True)
class Logged:
    """Notes every row that it is asked for, and every opening."""

    log: Path
    pause: float = 0.0
    opened: str = "opened"

    def open(self) -> Callable[[int], dict[str, Any]]:
        self._note(self.opened)

        def work(value: int) -> dict[str, Any]:
            time.sleep(self.pause)
            self._note(str(value))
            return square(value)

        return work

    def _note(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text + "\n")


@dataclass(frozen=True)
class Unopenable:
    def open(self) -> Callable[[int], dict[str, Any]]:
        raise FileNotFoundError("no such model")
