"""Stages that are done once: each leaves a marker, and a loop that is started again goes on there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from training.config import Config
from training.errors import TrainingError

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """`run` does the work and returns figures; `seconds` is how long that takes on the reference machine."""

    name: str
    title: str
    seconds: float
    run: Callable[[], Result]


@dataclass(slots=True)
class Progress:
    """Runs stages in order and tells what is left; `results` holds every finished stage's figures."""

    work: Path
    console: Console
    results: dict[str, Result] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def bind(self, config: Config) -> None:
        """Claim the work directory; raises TrainingError where it belongs to a loop with another config."""
        self.work.mkdir(parents=True, exist_ok=True)
        place, text = self.work / "loop.yaml", config.to_yaml()
        if place.exists() and place.read_text(encoding="utf-8") != text:
            raise TrainingError(
                f"{self.work}: holds a loop with other settings; choose another --work directory, or delete "
                "this one to start again"
            )
        place.write_text(text, encoding="utf-8")

    def run(self, stages: list[Stage]) -> None:
        for number, stage in enumerate(stages, start=1):
            done = self._finished(stage)
            if done is None:
                self._say(
                    f"[{number}/{len(stages)}] {stage.title}  (about {self._left(stages, number)} left)"
                )
                began = time.monotonic()
                result = stage.run()
                done = {"seconds": round(time.monotonic() - began, 1), "result": result}
                self._finish(stage, done)
                said = _in_words(result)
                self._say(f"      done in {done['seconds']:.0f} s{': ' + said if said else ''}")
            else:
                self._say(f"[{number}/{len(stages)}] {stage.title}: done before")
            self.results[stage.name] = done["result"]
            self.seconds[stage.name] = done["seconds"]

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _left(self, stages: list[Stage], number: int) -> str:
        """What is left, as this machine went so far compared with the reference machine."""
        expected = sum(s.seconds for s in stages if s.name in self.seconds)
        slower = max(sum(self.seconds.values()) / expected, 0.5) if expected else 1.0
        left = slower * sum(s.seconds for s in stages[number - 1 :])
        return f"{left / 60:.0f} min" if left >= 90 else f"{max(left, 1):.0f} s"

    def _marker(self, stage: Stage) -> Path:
        return self.work / "stages" / f"{stage.name}.json"

    def _finished(self, stage: Stage) -> Mapping[str, Any] | None:
        try:
            done: Mapping[str, Any] = json.loads(self._marker(stage).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return done

    def _finish(self, stage: Stage, done: Mapping[str, Any]) -> None:
        marker = self._marker(stage)
        marker.parent.mkdir(exist_ok=True)
        partial = marker.with_suffix(".partial")
        partial.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, marker)


def _in_words(result: Result) -> str:
    """The figures that fit a line."""
    plain = {k: v for k, v in result.items() if isinstance(v, str | int | float)}
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items())
