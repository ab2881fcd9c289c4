"""Figures with intervals: percentile bootstrap over rows (Efron and Tibshirani 1993)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

Floats = NDArray[np.floating[Any]]
Metric = Callable[[Floats, Floats], float]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, its 95 % interval, and how many rows it was measured on."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def percent(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def auc(truth: Floats, scores: Floats) -> float:
    return float(roc_auc_score(truth, scores))


def average_precision(truth: Floats, scores: Floats) -> float:
    return float(average_precision_score(truth, scores))


def flagged(truth: Floats, scores: Floats) -> float:
    """Share of rows with a score of 1; recall on positives, false-positive rate on negatives."""
    return float(scores.mean())


def bootstrap(metric: Metric, truth: Floats, scores: Floats, seed: int = 0, resamples: int = 500) -> Figure:
    """The metric on all rows; resampled within each class, so that every resample has both."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(truth == value) for value in np.unique(truth)]
    values = []
    for _ in range(resamples):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        values.append(metric(truth[rows], scores[rows]))
    low, high = np.quantile(values, (0.025, 0.975))
    return Figure(metric(truth, scores), float(low), float(high), len(truth))


def mean(values: Sequence[float] | Floats, seed: int = 0, resamples: int = 2000) -> Figure:
    """The mean, resampled over rows; of one row the interval is that row. At least one row is needed."""
    rows = np.asarray(values, dtype=np.float64)
    if not len(rows):
        raise ValueError("a mean needs at least one value")
    rng = np.random.default_rng(seed)
    # In blocks, so that memory stays small.
    means = np.concatenate(
        [rows[rng.integers(len(rows), size=(100, len(rows)))].mean(axis=1) for _ in range(resamples // 100)]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Figure(float(rows.mean()), float(low), float(high), len(rows))


def share(flags: Sequence[bool] | NDArray[np.bool_]) -> Figure:
    """A proportion with Wilson's score interval, which holds for shares near 0 and 1 too (Wilson 1927)."""
    n, z = len(flags), 1.959964
    p = float(np.mean(flags))
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Figure(p, float(max(0.0, (middle - half) / scale)), float(min(1.0, (middle + half) / scale)), n)


def calibration_error(truth: Floats, scores: Floats, bins: int = 10) -> float:
    """Expected calibration error over bins of equal width (Naeini et al. 2015)."""
    places = np.minimum((scores * bins).astype(int), bins - 1)
    return float(
        sum(
            abs(truth[places == b].mean() - scores[places == b].mean()) * np.mean(places == b)
            for b in np.unique(places)
        )
    )


Span = tuple[str, int, int]


def span_scores(
    truth: Sequence[Sequence[Span]], found: Sequence[Sequence[Span]], beta: float, exact: bool
) -> tuple[float, float, float]:
    """Precision, recall and F-beta over all texts.

    `exact` asks for the same type and ends; otherwise a span counts when one of its type overlaps it.
    """

    def hits(these: Sequence[Sequence[Span]], those: Sequence[Sequence[Span]]) -> tuple[int, int]:
        total = right = 0
        for left, right_side in zip(these, those, strict=True):
            for kind, start, end in left:
                total += 1
                if exact:
                    right += (kind, start, end) in right_side
                else:
                    right += any(k == kind and s < end and start < e for k, s, e in right_side)
        return right, total

    right, total = hits(found, truth)
    precision = right / total if total else 0.0
    right, total = hits(truth, found)
    recall = right / total if total else 0.0
    weight = beta * beta
    f = (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0
    return precision, recall, f
