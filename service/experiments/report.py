"""What is to be seen of an experiment at one look: intervals, comparisons, mismatch, limits, segments.

Every interval holds at all looks at once with probability 1 - alpha, for its metric; an epoch of a ramp has
its share of alpha, one step's of all. Limits have theirs together: in an epoch, one of them takes an arm back
wrongly with probability alpha at most. Intervals of segments have their part of alpha among the segments of a
dimension. Nothing is corrected for the number of metrics: who picks the best of many has picked the luckiest.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from policies.experiment import Bound, ExperimentSpec
from service.experiments import sequences
from service.experiments.figures import (
    ALL,
    FRACTIONS,
    QUANTILES,
    SEGMENTS,
    Figures,
    Segment,
    count_values,
    gather,
    ranked,
)
from service.experiments.sequences import Interval
from service.experiments.state import State

Report = dict[str, Any]
MISMATCH_ALPHA = 0.001


async def look(connection: AsyncConnection, spec: ExperimentSpec, state: State, now: float) -> Report:
    """The report on an epoch's settled units. The database adds up, a thread calculates."""
    wanted = {*spec.metrics, *(bound.metric for bound in (*spec.limits, *spec.gates))}
    metrics = [*spec.metrics, *sorted(wanted - set(spec.metrics))]
    figures = await gather(connection, spec.name, state.epoch, metrics)
    seen = _Seen(spec, state, figures, metrics)
    for arm, metric, alpha in seen.quantiles_needed():
        seen.quantiles[arm, metric, alpha] = await _quantile(connection, spec, state, arm, metric, alpha)
    return await asyncio.to_thread(seen.report, now)


async def _quantile(
    connection: AsyncConnection, spec: ExperimentSpec, state: State, arm: str, metric: str, alpha: float
) -> Interval:
    column, p = QUANTILES[metric]
    where = (connection, spec.name, state.epoch, arm, column)
    n = await count_values(*where)
    if n == 0:
        return sequences.NOTHING
    ranks = sequences.quantile(n, p, alpha, spec.plan_units / 2)
    found = await ranked(*where, [r for r in (ranks.estimate, ranks.low, ranks.high) if r is not None])
    low, high = (None if rank is None else found.get(rank) for rank in (ranks.low, ranks.high))
    return Interval(found[ranks.estimate], low, high)


def _asked(spec: ExperimentSpec, state: State, bounds: tuple[Bound, ...]) -> list[tuple[Bound, str]]:
    """The bounds and whom they are about; none against a control that gets no units any more."""
    alone = not state.shares[spec.control.name]
    return [(bound, arm) for bound in bounds for arm in spec.watched if not (bound.relative and alone)]


def _mismatch(figures: Figures, state: State) -> Report:
    """Whether units came to the arms as planned: where they did not, nothing else can be relied on."""
    evidence = sequences.mismatch(figures.exposed, state.shares)
    total = sum(figures.exposed.values())
    return {
        "p": min(1.0, math.exp(-evidence)) if evidence < math.inf else 0.0,
        "alarm": evidence >= math.log(1 / MISMATCH_ALPHA),
        "units": {arm: figures.exposed.get(arm, 0) for arm in state.shares},
        "expected": {arm: round(total * share, 1) for arm, share in state.shares.items()},
    }


class _Seen:
    """One look's figures, and what follows from them."""

    def __init__(self, spec: ExperimentSpec, state: State, figures: Figures, metrics: Sequence[str]) -> None:
        self._spec = spec
        self._state = state
        self._figures = figures
        self._metrics = metrics
        self._alpha = spec.alpha / (len(spec.ramp.steps) if spec.ramp else 1)
        self._limits, self._gates = (_asked(spec, state, bounds) for bounds in (spec.limits, spec.gates))
        self.quantiles: dict[tuple[str, str, float], Interval] = {}

    def quantiles_needed(self) -> list[tuple[str, str, float]]:
        """Arm, metric and alpha of those that `report` will ask for."""
        arms = [one.name for _, one in self._spec.places()]
        metrics = [metric for metric in self._metrics if metric in QUANTILES]
        alphas = {self._alpha, self._sides(len(self._spec.limits)), self._sides(1)}
        return [
            (a, m, part) for a in arms for m in metrics for alpha in alphas for part in (alpha, alpha / 2)
        ]

    def report(self, now: float) -> Report:
        """All of it, as JSON."""
        spec, state = self._spec, self._state
        return {
            "at": now,
            "epoch": state.epoch,
            "step": state.step,
            "alpha": self._alpha,
            "arms": [self._arm(arm.name) for arm in spec.arms],
            "shadows": [self._arm(shadow.name) for shadow in spec.shadows],
            "mismatch": _mismatch(self._figures, state),
            "limits": [self._bound(*one, len(spec.limits)) for one in self._limits],
            "gates": [self._bound(*one, 1) for one in self._gates],
            "segments": {dimension: self.segments(dimension) for dimension in SEGMENTS},
        }

    def _arm(self, name: str) -> Report:
        """One arm's row of the table."""
        figures = self._figures.arm(name)
        compared = name in {arm.name for arm in self._spec.arms[1:]}
        against = self._metrics if compared else ()
        return {
            "name": name,
            "units": figures.units,
            "requests": figures.requests,
            "metrics": {m: asdict(self._interval(name, m, self._alpha)) for m in self._metrics},
            "against_control": {m: asdict(self._compared(name, m, self._alpha)) for m in against},
        }

    def _interval(self, arm: str, metric: str, alpha: float, segment: Segment = ALL) -> Interval:
        """One arm's metric."""
        if metric in QUANTILES:
            return self.quantiles[arm, metric, alpha]
        figures = self._figures.arm(arm, segment)
        if metric in FRACTIONS:
            return figures.rate(metric).interval(alpha)
        return sequences.mean(figures.moments(metric), alpha, self._spec.plan_units / 2)

    def _compared(self, arm: str, metric: str, alpha: float) -> Interval:
        """An arm's metric less the control's."""
        control = self._spec.control.name
        if metric in QUANTILES:
            one, other = (self.quantiles[name, metric, alpha / 2] for name in (arm, control))
            return Interval(
                _less(one.estimate, other.estimate), _less(one.low, other.high), _less(one.high, other.low)
            )
        treated, base = (self._figures.arm(name).moments(metric) for name in (arm, control))
        plan, rate = self._spec.plan_units, metric in FRACTIONS
        return sequences.difference(treated, base, alpha, plan, rate=rate)

    def _sides(self, of: int) -> float:
        """The alpha of an interval of which one side decides: it gets what both sides have otherwise."""
        return min(0.5, 2 * self._alpha / (max(1, of) * len(self._spec.watched)))

    def _bound(self, bound: Bound, arm: str, of: int) -> Report:
        """Where a metric surely is: beyond its bound, within it, or nobody knows yet."""
        seen = (self._compared if bound.relative else self._interval)(arm, bound.metric, self._sides(of))
        return {"bound": str(bound), "arm": arm, "state": verdict(bound, seen), **asdict(seen)}

    def segments(self, dimension: str) -> list[Report]:
        """A dimension's table: each value's arms. For looking, not for deciding."""
        values = sorted(value for name, value in self._figures.arms if name == dimension)
        alpha = self._alpha / max(1, len(values))
        metrics = [metric for metric in self._spec.metrics if metric not in QUANTILES]
        table = []
        for segment in ((dimension, value) for value in values):
            rows = []
            for _, arm in self._spec.places():
                figures = self._figures.arm(arm.name, segment)
                shown = {m: asdict(self._interval(arm.name, m, alpha, segment)) for m in metrics}
                rows.append(
                    {"name": arm.name, "units": figures.units, "requests": figures.requests, "metrics": shown}
                )
            table.append({"value": segment[1], "arms": rows})
        return table


def verdict(bound: Bound, seen: Interval) -> str:
    """`crossed`, `within`, or `open`: whether the interval lies wholly beyond the bound, or wholly within."""
    if bound.max is not None or bound.max_increase is not None:
        limit = bound.max if bound.max is not None else bound.max_increase
        assert limit is not None  # noqa: S101 - one of the two is given
        return _side(seen.low, seen.high, limit)
    limit = -bound.min if bound.min is not None else bound.max_decrease
    assert limit is not None  # noqa: S101 - as above
    high, low = seen.high, seen.low
    return _side(None if high is None else -high, None if low is None else -low, limit)


def _side(low: float | None, high: float | None, limit: float) -> str:
    if low is not None and low > limit:
        return "crossed"
    return "within" if high is not None and high <= limit else "open"


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def tell(bound: Mapping[str, Any]) -> str:
    """A bound's report in a sentence."""
    low, high = (_number(bound[side]) for side in ("low", "high"))
    return f"{bound['arm']}: {bound['bound']}: {_number(bound['estimate'])}, surely within {low} to {high}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
