"""Drift: how far what the gateway sees now is from what it saw in a reference window.

Looked at are the histograms that are counted anyway: guard scores, rewards, prompt and reply lengths. At
intervals their bucket counts are read, off the event loop; what lies between two looks is a window. So drift
costs requests nothing, and its memory is a few numbers for each policy, however much traffic there is.

    reference   the first `reference_samples` after a policy's checkpoint or file changed, or after a reset
    window      what came within the last `window_s` seconds
    psi         population stability index: Σ (p - q) ln(p / q) over the buckets
    ks          Kolmogorov and Smirnov's statistic: the largest difference of the two distributions, at
                the buckets' bounds, so at most what it would be of the values themselves

Where either has too few samples, nothing is said.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from prometheus_client import Histogram

from service.telemetry.metrics import Metrics

Counts = tuple[int, ...]
"""How many values fell between one bucket's bound and the next; the last has no bound."""
Signal = tuple[str, str]
"""A policy, and what of it: `reward`, `tokens_in`, `tokens_out`, `score:<guard>:<stage>`."""

SMOOTHING = 0.5  # of a sample in each bucket, without which an empty one would make the index infinite


@dataclass(slots=True)
class Reference:
    """What a signal looked like. `bound_to` is the policy and checkpoint that it holds for."""

    bound_to: str
    counts: Counts
    complete: bool = False
    since: float = 0.0

    @property
    def samples(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Drifted:
    """One signal, as it stands. `psi` and `ks` are None while there is too little to say."""

    policy: str
    signal: str
    reference_samples: int
    complete: bool
    window_samples: int
    psi: float | None
    ks: float | None


@dataclass(slots=True)
class _Track:
    """One signal in this process: what was counted at each look, and up to where the reference has it."""

    looks: deque[tuple[float, Counts]]
    base: Counts


def psi(reference: Counts, window: Counts) -> float:
    """The population stability index of two histograms over the same buckets, both smoothed."""
    total = 0.0
    size = len(reference)
    n, m = sum(reference) + SMOOTHING * size, sum(window) + SMOOTHING * size
    for a, b in zip(reference, window, strict=True):
        p, q = (a + SMOOTHING) / n, (b + SMOOTHING) / m
        total += (q - p) * math.log(q / p)
    return total


def ks(reference: Counts, window: Counts) -> float:
    """The largest difference of the two cumulative distributions at the buckets' bounds."""
    n, m = sum(reference), sum(window)
    largest = below = above = 0.0
    for a, b in zip(reference, window, strict=True):
        below += a / n
        above += b / m
        largest = max(largest, abs(below - above))
    return largest


class Drift:
    """All signals of one gateway. `look` does the work, in a thread; its results are read from anywhere."""

    def __init__(
        self,
        metrics: Metrics,
        file: Path,
        *,
        window_s: float,
        reference_samples: int,
        min_samples: int,
        bindings: Callable[[], Mapping[str, str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`bindings` tells for each policy what its references hold for; others are forgotten."""
        self._metrics = metrics
        self._file = file
        self._window_s = window_s
        self._wanted = reference_samples
        self._min_samples = min_samples
        self._bindings = bindings
        self._clock = clock
        self._tracks: dict[Signal, _Track] = {}
        self._references: dict[Signal, Reference] = {}
        self._resets: set[str] = set()
        self._found: list[Drifted] = []
        self._sources: tuple[tuple[Histogram, Callable[[Mapping[str, str]], Signal | None]], ...] = (
            (metrics.reward_score, _reward),
            (metrics.token_usage, _tokens),
            (metrics.guard_score, _score),
        )

    def load(self) -> None:
        """Take up the references that are kept. Ones that can't be read are begun anew."""
        try:
            kept = json.loads(self._file.read_bytes())["references"]
            self._references = {
                (one.pop("policy"), one.pop("signal")): Reference(**{**one, "counts": tuple(one["counts"])})
                for one in kept
            }
        except (OSError, ValueError, KeyError, TypeError):
            self._references = {}

    def reset(self, policy: str | None = None) -> list[str]:
        """Begin new references at the next look, for one policy or all; their names."""
        names = [policy] if policy is not None else sorted(self._bindings())
        self._resets.update(names)
        return names

    def found(self) -> list[Drifted]:
        """What the last look found, by policy and signal."""
        return self._found

    def look(self) -> None:
        """Read the histograms, tell the metrics, keep the references. Blocks; one at a time."""
        now = self._clock()
        bindings = self._bindings()
        resets, self._resets = self._resets, set()
        for key in [key for key in self._references if key[0] not in bindings]:
            del self._references[key]
        changed = False
        found = []
        for key, counts in sorted(self._read().items()):
            bound_to = bindings.get(key[0])
            if bound_to is None:
                continue
            track, reference = self._tracks.get(key), self._references.get(key)
            stale = (
                reference is None
                or reference.bound_to != bound_to
                or len(reference.counts) != len(counts)
                or key[0] in resets
            )
            if track is None or stale:
                # All that this process has counted is new to it, until a reference begins in mid-life.
                base = counts if track is not None else (0,) * len(counts)
                track = self._tracks[key] = _Track(deque([(now, base)]), base)
            if stale:
                self._references[key] = Reference(bound_to, (0,) * len(counts), since=now)
                changed = True
            changed = self._extend(self._references[key], track, counts) or changed
            found.append(self._compare(key, track, counts, now))
        self._found = found
        self._publish(found)
        if changed or resets:
            self._keep()

    def _extend(self, reference: Reference, track: _Track, counts: Counts) -> bool:
        """Whether the reference has changed. It is complete at a look, so it may hold more than wanted."""
        if reference.complete:
            return False
        fresh = _minus(counts, track.base)
        if not any(fresh):
            return False
        reference.counts = tuple(a + b for a, b in zip(reference.counts, fresh, strict=True))
        track.base = counts
        reference.complete = reference.samples >= self._wanted
        if reference.complete:
            track.looks.clear()  # the window begins where the reference ends
        return True

    def _compare(self, key: Signal, track: _Track, counts: Counts, now: float) -> Drifted:
        reference = self._references[key]
        track.looks.append((now, counts))
        # The newest look before the window's begin stays: what came after it is the window.
        while len(track.looks) > 1 and track.looks[1][0] <= now - self._window_s:
            track.looks.popleft()
        window = _minus(counts, track.looks[0][1])
        said = reference.complete and sum(window) >= self._min_samples
        return Drifted(
            *key,
            reference.samples,
            reference.complete,
            sum(window),
            psi(reference.counts, window) if said else None,
            ks(reference.counts, window) if said else None,
        )

    def _read(self) -> dict[Signal, Counts]:
        out: dict[Signal, Counts] = {}
        for histogram, name in self._sources:
            for key, counts in _buckets(histogram, name).items():
                out[key] = counts
        return out

    def _publish(self, found: Iterable[Drifted]) -> None:
        metrics = self._metrics
        for gauge in (metrics.drift_psi, metrics.drift_ks, metrics.drift_samples):
            gauge.clear()
        for one in found:
            labels = (one.policy, one.signal)
            metrics.drift_samples.labels(*labels, "reference").set(one.reference_samples)
            metrics.drift_samples.labels(*labels, "window").set(one.window_samples)
            if one.psi is not None and one.ks is not None:
                metrics.drift_psi.labels(*labels).set(one.psi)
                metrics.drift_ks.labels(*labels).set(one.ks)

    def _keep(self) -> None:
        kept: list[dict[str, Any]] = [
            {"policy": policy, "signal": signal, **asdict(reference)}
            for (policy, signal), reference in self._references.items()
        ]
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        partial.write_text(json.dumps({"references": kept}), encoding="utf-8")
        os.replace(partial, self._file)


def _minus(counts: Counts, before: Counts) -> Counts:
    return tuple(a - b for a, b in zip(counts, before, strict=True))


def _buckets(
    histogram: Histogram, name: Callable[[Mapping[str, str]], Signal | None]
) -> dict[Signal, Counts]:
    """The counts of each signal, several series of it added up."""
    cumulative: dict[Signal, dict[float, float]] = {}
    for family in histogram.collect():
        for sample in family.samples:
            key = name(sample.labels) if sample.name.endswith("_bucket") else None
            if key is not None:
                bounds = cumulative.setdefault(key, {})
                bound = float(sample.labels["le"])
                bounds[bound] = bounds.get(bound, 0.0) + sample.value
    out = {}
    for key, bounds in cumulative.items():
        below = [0.0, *(bounds[bound] for bound in sorted(bounds))]
        out[key] = tuple(round(b - a) for a, b in pairwise(below))
    return out


def _reward(labels: Mapping[str, str]) -> Signal | None:
    return (labels["model"], "reward") if labels["which"] == "given" else None


def _tokens(labels: Mapping[str, str]) -> Signal | None:
    way = {"input": "tokens_in", "output": "tokens_out"}.get(labels["gen_ai_token_type"])
    return (labels["gen_ai_request_model"], way) if way else None


def _score(labels: Mapping[str, str]) -> Signal | None:
    return labels["model"], f"score:{labels['guard']}:{labels['stage']}"
