"""A figure with its interval, and the two kinds that need nothing but numpy: means and shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


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
