"""What fails a run. Each threshold names a figure and the most, or the least, that it may be.

Times are of the small machine that this was written on, with room; the ratios hold anywhere. Change one with
`--threshold overload.standard.refused_p99_ms=30`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Threshold:
    """`figure` is the path into the figures, by dots; `sense` says on which side of the limit is right."""

    figure: str
    sense: Literal["at most", "at least"]
    limit: float
    why: str

    def value(self, figures: Mapping[str, Any]) -> float | None:
        """The figure, None where it was not measured."""
        found: Any = figures
        for name in self.figure.split("."):
            if not isinstance(found, Mapping) or name not in found:
                return None
            found = found[name]
        return float(found)

    def met(self, value: float) -> bool:
        """Whether a value is right. What can't be told (nan) is not."""
        if math.isnan(value):
            return False
        return value <= self.limit if self.sense == "at most" else value >= self.limit


THRESHOLDS = (
    Threshold(
        "mix.failed", "at most", 0, "every answer of the mix is right: attacks blocked, the rest answered"
    ),
    Threshold("mix.kinds.stream.ttft_ms.p95", "at most", 2_000, "first text of a stream"),
    Threshold("mix.gap_ms.p99", "at most", 1_000, "between two texts of a stream"),
    Threshold("spike.failed", "at most", 0, "a spike is answered or refused, never failed"),
    Threshold("spike.after.refused", "at most", 0, "when it is over, nobody is refused"),
    *(
        threshold
        for policy in ("standard", "open")
        for threshold in (
            Threshold(f"saturation.{policy}.failed", "at most", 0, "callers are answered or refused"),
            Threshold(f"overload.{policy}.times_capacity", "at least", 9, "it is an overload of about 10"),
            Threshold(f"overload.{policy}.goodput_share", "at least", 0.9, "of the peak is still answered"),
            Threshold(
                f"overload.{policy}.admitted_p99_ms", "at most", 6_000, "who is let in is answered in time"
            ),
            Threshold(f"overload.{policy}.refused_p99_ms", "at most", 50, "who is not hears so at once"),
            Threshold(f"overload.{policy}.failed", "at most", 0, "nobody is answered wrongly"),
        )
    ),
    Threshold("soak.failed", "at most", 0, "every answer of the soak is right"),
    Threshold("soak.memory.gateway.growth_per_cent", "at most", 5, "the gateway's memory stands still"),
    Threshold("soak.memory.guard workers.growth_per_cent", "at most", 5, "so does the guard workers'"),
)


@dataclass(frozen=True)
class Judged:
    """A threshold and what was seen."""

    threshold: Threshold
    value: float

    @property
    def met(self) -> bool:
        return self.threshold.met(self.value)


def changed(thresholds: Iterable[Threshold], given: Iterable[str]) -> list[Threshold]:
    """With other limits: `FIGURE=LIMIT`. Raises `ValueError` for a figure that has none, or no number."""
    found = {threshold.figure: threshold for threshold in thresholds}
    for item in given:
        figure, _, limit = item.partition("=")
        if figure not in found:
            raise ValueError(f"no threshold is named {figure!r}; there are: {', '.join(found)}")
        found[figure] = replace(found[figure], limit=float(limit))
    return list(found.values())


def judge(figures: Mapping[str, Any], thresholds: Iterable[Threshold] = THRESHOLDS) -> list[Judged]:
    """All thresholds whose figures were measured."""
    values = ((threshold, threshold.value(figures)) for threshold in thresholds)
    return [Judged(threshold, value) for threshold, value in values if value is not None]
