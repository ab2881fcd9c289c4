"""One line for each request: what a run saw, kept whole, so that every figure can be made from it later."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

# ok: answered as it should be (an attack: blocked). refused: 429 or 503, told when to come again.
# failed: everything else, a refusal without Retry-After and an attack that was answered among them.
Outcome = Literal["ok", "refused", "failed"]


@dataclass(slots=True)
class Seen:
    """One request. `at` is when it was sent, in seconds of the run; times in milliseconds.

    `ttft_ms` and `gaps_ms` (from one text to the next) are of streams. `late_ms` is by how much the generator
    was late with it, where it was due at a time.
    """

    at: float
    kind: str
    ms: float
    status: int
    outcome: Outcome
    ttft_ms: float | None = None
    gaps_ms: list[float] = field(default_factory=list)
    error: str = ""
    late_ms: float = 0.0


class Recorder:
    """Writes `Seen` as JSON lines. Times are counted from its making."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8", buffering=1 << 16)
        self._began = time.perf_counter()

    def now(self) -> float:
        """Seconds of the run."""
        return time.perf_counter() - self._began

    def add(self, seen: Seen) -> None:
        """Keep one."""
        row = {name: value for name, value in asdict(seen).items() if value not in (None, "", [], 0.0)}
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Write what is held."""
        self._file.close()


def read(path: Path) -> Iterator[Seen]:
    """What a recorder wrote."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row: dict[str, Any] = json.loads(line)
            yield Seen(**row)
