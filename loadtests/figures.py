"""From recorded requests to figures: rates, quantiles, growth. No opinion on them: that is `thresholds`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from loadtests.record import Seen
from loadtests.watch import Sample

Figures = dict[str, Any]


def quantile(values: Sequence[float], level: float) -> float:
    """The value that `level` (0 to 1) of the values don't exceed (nearest rank); nan where there are none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(level * len(ordered)) - 1))]


def spread(values: Sequence[float]) -> Figures:
    """p50, p95, p99 and the largest, rounded."""
    levels = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(quantile(values, level), 2) for name, level in levels.items()}


def of_requests(seen: Iterable[Seen], begin: float, end: float) -> Figures:
    """What happened to the requests that were sent from `begin` to `end` seconds; times in ms.

    `goodput` is good answers that came in that time, a second: an answer that comes after it is none.
    """
    rows = list(seen)
    window = [row for row in rows if begin <= row.at < end]
    ok = [row for row in window if row.outcome == "ok"]
    refused = [row for row in window if row.outcome == "refused"]
    failed = [row for row in window if row.outcome == "failed"]
    came = sum(row.outcome == "ok" and begin <= row.at + row.ms / 1e3 < end for row in rows)
    errors: dict[str, int] = {}
    for row in failed:
        errors[row.error or str(row.status)] = errors.get(row.error or str(row.status), 0) + 1
    return {
        "requests": len(window),
        "offered": round(len(window) / (end - begin), 2),
        "goodput": round(came / (end - begin), 2),
        "ok": len(ok),
        "refused": len(refused),
        "failed": len(failed),
        "errors": errors,
        "ms": spread([row.ms for row in ok]),
        "refused_ms": spread([row.ms for row in refused]),
        "late_ms": spread([row.late_ms for row in window]),
    }


def of_kinds(seen: Iterable[Seen]) -> dict[str, Figures]:
    """By kind of caller: counts, and the times of good answers, of first texts and between texts, in ms."""
    rows = list(seen)
    kinds: dict[str, Figures] = {}
    for kind in sorted({row.kind for row in rows}):
        of_kind = [row for row in rows if row.kind == kind]
        good = [row for row in of_kind if row.outcome == "ok"]
        kinds[kind] = {
            "requests": len(of_kind),
            "refused": sum(row.outcome == "refused" for row in of_kind),
            "failed": sum(row.outcome == "failed" for row in of_kind),
            "ms": spread([row.ms for row in good]),
            "ttft_ms": spread([row.ttft_ms for row in good if row.ttft_ms is not None]),
            "gap_ms": spread([gap for row in good for gap in row.gaps_ms]),
        }
    return kinds


def growth(samples: Sequence[Sample], role: str, *, warm: float = 0.1, window: float = 0.1) -> Figures:
    """Resident memory of a role: its median over the first `window` after `warm`, and over the last.

    Both are shares of the run; what is filled once (caches, allocators) is filled in the warm-up.
    """
    total = samples[-1].at
    first = [s.rss_mib.get(role, 0.0) for s in samples if warm * total <= s.at < (warm + window) * total]
    last = [s.rss_mib.get(role, 0.0) for s in samples if s.at >= (1 - window) * total]
    start, end = statistics.median(first), statistics.median(last)
    per_cent = (end / start - 1) * 100 if start else 0.0
    return {"start_mib": round(start, 1), "end_mib": round(end, 1), "growth_per_cent": round(per_cent, 2)}
