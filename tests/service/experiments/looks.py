"""Continuous peeking, simulated: a look after every unit, in 2,000 experiments whose arms are alike.

The figures come from the functions that the gateway itself calls (`service.experiments.sequences`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from service.experiments import sequences
from service.experiments.sequences import MIN_UNITS, Floats, Moments

Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.normal(size=shape)


def lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.lognormal(0.0, 0.75, shape)


def flips(p: float) -> Draw:
    return lambda rng, shape: (rng.random(shape) < p).astype(np.float64)


def sessions(p: float, concentration: float) -> Draw:
    """A unit's own share of blocked requests: 1 to 12 requests, alike within a session."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        requests = rng.integers(1, 13, shape)
        inclined = rng.beta(p * concentration, (1 - p) * concentration, shape)
        shares: Floats = rng.binomial(requests, inclined) / requests
        return shares

    return draw


def running(values: Floats, mine: Any) -> Moments:
    """The sums after each unit, of those that are `mine`."""
    kept = values * mine
    return Moments(
        np.maximum(np.cumsum(mine, axis=1), 1.0),
        np.cumsum(kept, axis=1),
        np.cumsum(kept * values, axis=1),
    )


def differences(
    draw: Draw,
    *,
    runs: int,
    units: int,
    seed: int,
    share: float = 0.5,
    effect: float = 0.0,
    rate: bool = False,
    alpha: float = 0.05,
    plan: float = 2_000,
    block: int = 100,
) -> Floats:
    """When each run first saw a difference: the number of units then, infinity where it never did."""
    rng = np.random.default_rng(seed)
    first = np.full(runs, np.inf)
    for start in range(0, runs, block):
        shape = (min(block, runs - start), units)
        treated = rng.random(shape) < share
        values = draw(rng, shape) + effect * treated
        one, other = running(values, treated), running(values, ~treated)
        enough = (np.cumsum(treated, axis=1) >= MIN_UNITS) & (np.cumsum(~treated, axis=1) >= MIN_UNITS)
        with np.errstate(divide="ignore", invalid="ignore"):
            radius = sequences.difference_radius(one, other, alpha, plan, rate=rate)
            seen = enough & (np.abs(one.mean - other.mean) > radius)
        found = seen.any(axis=1)
        first[start : start + shape[0]][found] = seen.argmax(axis=1)[found] + 1
    return first


def crossings(p: float, bound: float, *, runs: int, units: int, seed: int, alpha: float = 0.05) -> Floats:
    """When a limit on a rate of `p` first acted: units then, infinity where it never did. Binary values."""
    rng = np.random.default_rng(seed)
    first = np.full(runs, np.inf)
    needed = math.log(1 / alpha)
    values = np.array([0.0, 1.0])
    for run in range(runs):
        hits = np.cumsum(rng.random(units) < p)
        counts = np.stack([np.arange(1, units + 1) - hits, hits], axis=1).astype(np.float64)
        over = sequences.log_wealth(values, counts, bound) >= needed
        if over.any():
            first[run] = over.argmax() + 1
    return first


def misses(p: float, *, runs: int, units: int, seed: int, alpha: float = 0.05, plan: float = 1_000) -> float:
    """The share of runs in which the p-quantile's interval missed it at any look."""
    rng = np.random.default_rng(seed)
    ranks = [sequences.quantile(n, p, alpha, plan) for n in range(1, units + 1)]
    low = np.array([r.low if r.low is not None else 0 for r in ranks])
    high = np.array([r.high if r.high is not None else units + 2 for r in ranks])
    below = np.cumsum(rng.random((runs, units)) < p, axis=1)
    # The quantile lies in [x(low), x(high)] where at least `low` and fewer than `high` values are below it.
    outside = (below < low) | (below >= high)
    return float(outside.any(axis=1).mean())


def mismatches(
    real: float, planned: float, *, runs: int, units: int, seed: int, alpha: float = 0.001
) -> Floats:
    """When the units' shares first looked wrong: units then, infinity where they never did."""
    needed = math.log(1 / alpha)
    shares = {"a": planned, "b": 1 - planned}

    def refuted(count: int, n: int) -> bool:
        return sequences.mismatch({"a": count, "b": n - count}, shares) >= needed

    low, high = np.full(units, -1), np.full(units, units + 1)
    for n in range(1, units + 1):
        middle = round(n * planned)
        low[n - 1] = next_refuted(lambda count, n=n: refuted(count, n), middle, 0, -1)
        high[n - 1] = next_refuted(lambda count, n=n: refuted(count, n), middle, n, n + 1)
    seen = np.cumsum(np.random.default_rng(seed).random((runs, units)) < real, axis=1)
    outside = (seen <= low) | (seen >= high)
    first = np.where(outside.any(axis=1), outside.argmax(axis=1) + 1.0, np.inf)
    return first


def next_refuted(refuted: Callable[[int], bool], inside: int, outside: int, none: int) -> int:
    """The first count from `inside` to `outside` that is refuted, `none` where there isn't any."""
    if not refuted(outside):
        return none
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        inside, outside = (inside, middle) if refuted(middle) else (middle, outside)
    return outside
