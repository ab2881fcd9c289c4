"""What is to be seen of an experiment at one look: intervals, comparisons, mismatch, limits, segments.

Every interval holds at all looks at once with probability 1 - alpha, for its metric; an epoch of a ramp has
its share of alpha, one step's of all. Limits have theirs together: in an epoch, one of them takes an arm back
wrongly with probability alpha at most. Intervals of segments have their part of alpha among the segments of a
dimension. Nothing is corrected for the number of metrics: who picks the best of many has picked the luckiest.
"""

from __future__ import annotations

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
    """The report on an epoch's settled units."""
    wanted = {*spec.metrics, *(bound.metric for bound in (*spec.limits, *spec.gates))}
    metrics = [*spec.metrics, *sorted(wanted - set(spec.metrics))]
    figures = await gather(connection, spec.name, state.epoch, metrics)
    alpha = spec.alpha / (len(spec.ramp.steps) if spec.ramp else 1)
    seen = _Seen(connection, spec, state, figures, alpha)
    arms = [await seen.arm(arm.name, metrics) for arm in spec.arms]
    return {
        "at": now,
        "epoch": state.epoch,
        "step": state.step,
        "alpha": alpha,
        "arms": arms,
        "shadows": [await seen.arm(shadow.name, metrics) for shadow in spec.shadows],
        "mismatch": _mismatch(figures, state),
        "limits": [await seen.bound(*one, len(spec.limits)) for one in _asked(spec, state, spec.limits)],
        "gates": [await seen.bound(*one, 1) for one in _asked(spec, state, spec.gates)],
        "segments": {dimension: seen.segments(dimension) for dimension in SEGMENTS},
    }


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

    def __init__(
        self,
        connection: AsyncConnection,
        spec: ExperimentSpec,
        state: State,
        figures: Figures,
        alpha: float,
    ) -> None:
        self._connection = connection
        self._spec = spec
        self._state = state
        self._figures = figures
        self._alpha = alpha
        self._sorted: dict[tuple[str, str, float], Interval] = {}

    async def arm(self, name: str, metrics: Sequence[str]) -> Report:
        """One arm's row of the table."""
        figures = self._figures.arm(name)
        compared = name in {arm.name for arm in self._spec.arms[1:]}
        return {
            "name": name,
            "units": figures.units,
            "requests": figures.requests,
            "metrics": {m: asdict(await self.interval(name, m, self._alpha)) for m in metrics},
            "against_control": {m: asdict(await self.compared(name, m, self._alpha)) for m in metrics}
            if compared
            else {},
        }

    async def interval(self, arm: str, metric: str, alpha: float) -> Interval:
        """One arm's metric."""
        if metric in QUANTILES:
            return await self._quantile(arm, metric, alpha)
        figures = self._figures.arm(arm)
        if metric in FRACTIONS:
            return figures.rate(metric).interval(alpha)
        return sequences.mean(figures.moments(metric), alpha, self._spec.plan_units / 2)

    async def compared(self, arm: str, metric: str, alpha: float, segment: Segment = ALL) -> Interval:
        """An arm's metric less the control's."""
        control = self._spec.control.name
        if metric in QUANTILES:
            one = await self._quantile(arm, metric, alpha / 2)
            other = await self._quantile(control, metric, alpha / 2)
            return Interval(
                _less(one.estimate, other.estimate), _less(one.low, other.high), _less(one.high, other.low)
            )
        treated, base = self._figures.arm(arm, segment), self._figures.arm(control, segment)
        return sequences.difference(
            treated.moments(metric),
            base.moments(metric),
            alpha,
            self._spec.plan_units,
            rate=metric in FRACTIONS,
        )

    async def _quantile(self, arm: str, metric: str, alpha: float) -> Interval:
        key = (arm, metric, alpha)
        if key not in self._sorted:
            column, p = QUANTILES[metric]
            where = (self._connection, self._spec.name, self._state.epoch, arm, column)
            n = await count_values(*where)
            if n == 0:
                return sequences.NOTHING
            ranks = sequences.quantile(n, p, alpha, self._spec.plan_units / 2)
            found = await ranked(
                *where, [r for r in (ranks.estimate, ranks.low, ranks.high) if r is not None]
            )
            low, high = (found.get(rank) if rank is not None else None for rank in (ranks.low, ranks.high))
            self._sorted[key] = Interval(found[ranks.estimate], low, high)
        return self._sorted[key]

    async def bound(self, bound: Bound, arm: str, of: int) -> Report:
        """Where a metric surely is: beyond its bound, within it, or nobody knows yet."""
        alpha = self._alpha / (max(1, of) * len(self._spec.watched))
        # A one-sided statement: the interval's other side gets nothing of alpha, so both may have it all.
        sides = min(0.5, 2 * alpha)
        seen = await (self.compared if bound.relative else self.interval)(arm, bound.metric, sides)
        return {
            "bound": str(bound),
            "arm": arm,
            "state": verdict(bound, seen),
            **asdict(seen),
        }

    def segments(self, dimension: str) -> list[Report]:
        """A dimension's table: each value's arms. For looking, not for deciding."""
        values = sorted(value for name, value in self._figures.arms if name == dimension)
        alpha = self._alpha / max(1, len(values))
        table = []
        for value in values:
            rows = []
            for _, arm in self._spec.places():
                figures = self._figures.arm(arm.name, (dimension, value))
                shown = {}
                for metric in (m for m in self._spec.metrics if m not in QUANTILES):
                    exact = metric in FRACTIONS
                    shown[metric] = asdict(
                        figures.rate(metric).interval(alpha)
                        if exact
                        else sequences.mean(figures.moments(metric), alpha, self._spec.plan_units / 2)
                    )
                rows.append(
                    {"name": arm.name, "units": figures.units, "requests": figures.requests, "metrics": shown}
                )
            table.append({"value": value, "arms": rows})
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
