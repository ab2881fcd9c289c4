"""Confidence sequences and e-processes: intervals and tests that hold at all times at once.

A confidence sequence covers the truth at every look with probability 1 - alpha, so that looking often, and
stopping when one likes, does no harm. All of these take sums over units, each of which counts once:

    Rate        means of values in [0, 1], exact at any size: a mixture of bets against each candidate mean
                (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting")
    mean, difference    asymptotic confidence sequences for means of any values with a variance
                (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, "Time-uniform central limit theory and
                asymptotic confidence sequences", theorem 2.2; the Gaussian mixture is Robbins 1970)
    quantile    one quantile, exact, by the beta-binomial mixture over counts below a candidate
                (Howard & Ramdas 2022, "Sequential estimation of quantiles with applications to A/B testing
                and best-arm identification"; Howard, Ramdas, McAuliffe & Sekhon 2021 for the mixture)
    mismatch    sample ratio mismatch, a Dirichlet-multinomial mixture against the planned shares
                (Lindon & Malek 2022, "Anytime-valid inference for multinomial count data")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_UNITS = 100
"""Where asymptotic sequences begin: below, the variance is not yet known well enough."""
STAKES = np.geomspace(5e-4, 0.98, 60)
"""What is bet against a candidate mean, as a share of what can be lost at most. Small stakes find small
effects in much data, large ones large effects in little."""


@dataclass(frozen=True, slots=True)
class Interval:
    """`estimate` and its confidence sequence at this moment; a bound is None where nothing is known yet."""

    estimate: float | None
    low: float | None
    high: float | None


NOTHING = Interval(None, None, None)


@dataclass(frozen=True)
class Rate:
    """Values in [0, 1] with how often each was seen."""

    values: Floats
    counts: Floats

    @classmethod
    def of(cls, seen: Mapping[float, int]) -> Rate:
        """From value to count."""
        return cls(np.array(list(seen), dtype=np.float64), np.array(list(seen.values()), dtype=np.float64))

    @property
    def n(self) -> float:
        return float(self.counts.sum())

    @cached_property
    def mean(self) -> float:
        return float(self.values @ self.counts) / self.n

    def log_evidence_above(self, bound: float) -> float:
        """The log of an e-process against "the mean is at most `bound`"; above log(1/alpha) it is refuted."""
        if self.n == 0 or bound >= 1:
            return 0.0
        return float(log_wealth(self.values, self.counts, max(bound, 1e-12)))

    def log_evidence_below(self, bound: float) -> float:
        """The same against "the mean is at least `bound`"."""
        if self.n == 0 or bound <= 0:
            return 0.0
        return float(log_wealth(1 - self.values, self.counts, max(1 - bound, 1e-12)))

    def interval(self, alpha: float) -> Interval:
        """The candidates that neither of two e-processes refutes at alpha / 2."""
        if self.n == 0:
            return NOTHING
        needed = math.log(2 / alpha)
        # Both bounds lie outwards of the mean, where evidence grows with the distance.
        low = _edge(lambda m: self.log_evidence_above(m) < needed, self.mean, 0.0)
        high = _edge(lambda m: self.log_evidence_below(m) < needed, self.mean, 1.0)
        return Interval(self.mean, low, high)


def log_wealth(values: Floats, counts: Floats, bound: float) -> Floats:
    """Of a gambler who bets at each stake that values are above `bound`, all stakes alike at the start.

    `values` [J], `counts` [..., J]; returns [...].
    """
    growth = counts @ np.log1p(STAKES[:, None] * (values[None, :] / bound - 1.0)).T
    top = growth.max(axis=-1)
    wealth: Floats = top + np.log(np.exp(growth - top[..., None]).mean(axis=-1))
    return wealth


def _edge(kept: Callable[[float], bool], inside: float, outside: float) -> float:
    """The last candidate that is kept on the way from `inside` to `outside`, rounded outwards."""
    if kept(outside):
        return outside
    for _ in range(40):
        middle = (inside + outside) / 2
        if kept(middle):
            inside = middle
        else:
            outside = middle
    return outside


@dataclass(frozen=True, slots=True)
class Moments:
    """Any values, by their number, sum and sum of squares. These may be arrays, of many looks at once."""

    n: Any = 0.0
    total: Any = 0.0
    squares: Any = 0.0

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> Any:
        return self.total / self.n

    @property
    def variance(self) -> Any:
        """Of the values, estimated; from two of them on."""
        return np.maximum(0.0, self.squares - self.total**2 / self.n) / (self.n - 1)

    def softened(self) -> Moments:
        """With one 0 and one 1 more: of a rate that was never seen, the variance isn't surely 0."""
        return Moments(self.n + 2, self.total + 1, self.squares + 1)


def mean(seen: Moments, alpha: float, plan: float) -> Interval:
    """The mean of one arm. `plan` is about how many units are expected."""
    if seen.n < MIN_UNITS:
        return Interval(seen.mean if seen.n else None, None, None)
    radius = math.sqrt(seen.variance) * float(deviations(seen.n, alpha, plan))
    return Interval(seen.mean, seen.mean - radius, seen.mean + radius)


def difference(
    treated: Moments, control: Moments, alpha: float, plan: float, *, rate: bool = False
) -> Interval:
    """The treated arm's mean less the control's. `rate`: values are in [0, 1], and may be rare."""
    if not treated.n or not control.n:
        return NOTHING
    estimate = treated.mean - control.mean
    if min(treated.n, control.n) < MIN_UNITS:
        return Interval(estimate, None, None)
    radius = float(difference_radius(treated, control, alpha, plan, rate=rate))
    return Interval(estimate, estimate - radius, estimate + radius)


def difference_radius(treated: Moments, control: Moments, alpha: float, plan: float, *, rate: bool) -> Floats:
    """Half of the difference's interval; sums may be arrays, of many looks at once.

    The clock is the number of units that the two together are worth, 1 / (1/n + 1/m): for shares that don't
    change it runs in step with the units, and the estimate is a mean of independent terms up to vanishing
    ones, one a unit, as the theorem asks for.
    """
    clock = 1 / (1 / treated.n + 1 / control.n)
    one, other = (treated.softened(), control.softened()) if rate else (treated, control)
    deviation = np.sqrt(clock * (one.variance / treated.n + other.variance / control.n))
    radius: Floats = deviation * deviations(clock, alpha, plan / 4)
    return radius


def deviations(t: float | Floats, alpha: float, plan: float) -> Floats:
    """Half of a mean's interval, in standard deviations of one value; beside what fixed samples give,
    narrowest at about `plan`."""
    tuned = -2 * math.log(alpha)
    rho2 = (tuned + math.log(tuned + 1)) / plan
    scaled = np.asarray(t) * rho2 + 1
    radius: Floats = np.sqrt(2 * scaled / (t * t * rho2) * np.log(np.sqrt(scaled) / alpha))
    return radius


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where, among n sorted values, a quantile and its bounds stand; counted from 1, None beyond the ends."""

    estimate: int
    low: int | None
    high: int | None


def quantile(n: int, p: float, alpha: float, plan: float) -> Ranks:
    """The ranks of the p-quantile's interval among `n` values.

    Of the values up to the true quantile there are as many as of successes in n trials with chance p, give or
    take ties; counts that a beta-binomial mixture refutes are none of it.
    """
    weight = max(2.0, plan / 10)
    a, b = weight * p, weight * (1 - p)
    needed = math.log(1 / alpha)

    def refuted(count: int) -> bool:
        fair = count * math.log(p) + (n - count) * math.log1p(-p)
        return _log_beta(a + count, b + n - count) - _log_beta(a, b) - fair >= needed

    middle = min(n, max(0, round(n * p)))
    below = _last(lambda count: not refuted(count), middle, 0)  # the smallest count that is not refuted
    above = _last(lambda count: not refuted(count), middle, n)
    return Ranks(max(1, math.ceil(n * p)), below if below >= 1 else None, above + 1 if above < n else None)


def _last(kept: Callable[[int], bool], inside: int, outside: int) -> int:
    """The last whole number that is kept on the way from `inside` to `outside`."""
    if kept(outside):
        return outside
    while abs(inside - outside) > 1:
        middle = (inside + outside) // 2
        if kept(middle):
            inside = middle
        else:
            outside = middle
    return inside


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def mismatch(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """The log of an e-process against "units come to the arms by `shares`"; units of an arm that has no share
    refute it at once."""
    if any(counts.get(arm, 0) and not share for arm, share in shares.items()):
        return math.inf
    weight = 100.0
    arms = [(counts.get(arm, 0), share) for arm, share in shares.items() if share > 0]
    n = sum(count for count, _ in arms)
    log = math.lgamma(weight) - math.lgamma(weight + n)
    for count, share in arms:
        log += math.lgamma(weight * share + count) - math.lgamma(weight * share) - count * math.log(share)
    return log
