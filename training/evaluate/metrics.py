"""Figures with intervals: percentile bootstrap over rows (Efron and Tibshirani 1993)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from training.evaluate.figures import Figure, Floats, mean, share

__all__ = [
    "Figure",
    "Floats",
    "Metric",
    "Span",
    "auc",
    "average_precision",
    "bootstrap",
    "calibration_error",
    "flagged",
    "mean",
    "share",
    "span_scores",
]

Metric = Callable[[Floats, Floats], float]


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
