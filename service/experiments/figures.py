"""What the store's settled units say of each arm, as sums from which intervals are made.

The database adds up; what comes out of it is small, however many units there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Float, RowMapping, Select, cast, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.experiments.sequences import Moments, Rate
from service.store.exposures import exposures

FRACTIONS: Mapping[str, tuple[str, str]] = {  # a unit's value: what of its requests, or what a vote
    "block_rate": ("blocked", "requests"),
    "modify_rate": ("modified", "requests"),
    "error_rate": ("failed", "requests"),
    "feedback": ("feedback_sum", "feedback_n"),
}
MEANS: Mapping[str, tuple[str, str]] = {
    "reward": ("reward_sum", "reward_n"),
    "revise_rounds": ("revise_rounds", "requests"),
    "tokens_out": ("tokens_out", "requests"),
    "characters": ("characters", "requests"),
}
QUANTILES: Mapping[str, tuple[str, float]] = {  # of the units' first replies, in seconds
    "duration_p50": ("duration_s", 0.5),
    "duration_p95": ("duration_s", 0.95),
    "first_token_p50": ("first_token_s", 0.5),
    "first_token_p95": ("first_token_s", 0.95),
}
SEGMENTS = ("stream", "kind", "unit_kind")


@dataclass(slots=True)
class Arm:
    """One arm's settled units: their number, all of their requests, and the sums by metric."""

    units: int = 0
    requests: int = 0
    fractions: dict[str, dict[float, int]] = field(default_factory=dict)
    means: dict[str, Moments] = field(default_factory=dict)

    def rate(self, metric: str) -> Rate:
        return Rate.of(self.fractions.get(metric, {}))

    def moments(self, metric: str) -> Moments:
        """Of a fraction or a mean."""
        if metric in MEANS:
            return self.means.get(metric, Moments())
        seen = self.fractions.get(metric, {})
        return Moments(
            float(sum(seen.values())),
            sum(value * count for value, count in seen.items()),
            sum(value * value * count for value, count in seen.items()),
        )


Segment = tuple[str, str]
"""A dimension and its value; ("", "") is everything."""
ALL: Segment = ("", "")


@dataclass(slots=True)
class Figures:
    """What is known of an epoch. `exposed`: units that came, settled or not, without testers' and copies."""

    arms: dict[Segment, dict[str, Arm]] = field(default_factory=dict)
    exposed: dict[str, int] = field(default_factory=dict)

    def arm(self, name: str, segment: Segment = ALL) -> Arm:
        return self.arms.get(segment, {}).get(name, Arm())

    def entries(self, row: RowMapping) -> Iterable[Arm]:
        """The entries that a row of sums belongs to."""
        for segment in (ALL, *((name, _shown(name, row[name])) for name in SEGMENTS)):
            yield self.arms.setdefault(segment, {}).setdefault(row["arm"], Arm())


def _shown(dimension: str, value: Any) -> str:
    if dimension == "stream":
        return "streamed" if value else "whole"
    return str(value)


async def gather(connection: AsyncConnection, experiment: str, epoch: int, metrics: Sequence[str]) -> Figures:
    """Add up an epoch's units."""
    figures = Figures()
    table = exposures.c
    mine = (table.experiment == experiment) & (table.epoch == epoch) & (table.chosen == 0)
    exposed = select(table.arm, func.count()).where(mine, table.shadow == 0).group_by(table.arm)
    figures.exposed = {arm: count for arm, count in await connection.execute(exposed)}
    counted = mine & table.settled.is_not(None) & (table.requests > 0)
    by = [table.arm, *(table[name] for name in SEGMENTS)]
    sums = [func.count().label("units"), func.sum(table.requests).label("requests")]
    for metric in (name for name in metrics if name in MEANS):
        value = _value(*MEANS[metric])
        sums += [
            func.count(value).label(f"{metric}_n"),
            func.sum(value).label(f"{metric}_total"),
            func.sum(value * value).label(f"{metric}_squares"),
        ]
    for row in (await connection.execute(select(*by, *sums).where(counted).group_by(*by))).mappings():
        for arm in figures.entries(row):
            arm.units += row["units"]
            arm.requests += row["requests"]
            for metric in (name for name in metrics if name in MEANS):
                more = Moments(
                    float(row[f"{metric}_n"]),
                    float(row[f"{metric}_total"] or 0),
                    float(row[f"{metric}_squares"] or 0),
                )
                arm.means[metric] = arm.means.get(metric, Moments()) + more
    for metric in (name for name in metrics if name in FRACTIONS):
        value = _value(*FRACTIONS[metric]).label("value")
        wanted = select(*by, value, func.count().label("units")).where(counted, value.is_not(None))
        rows = await connection.execute(wanted.group_by(*by, literal_column("value")))
        for row in rows.mappings():
            for arm in figures.entries(row):
                seen = arm.fractions.setdefault(metric, {})
                seen[row["value"]] = seen.get(row["value"], 0) + row["units"]
    return figures


def _value(numerator: str, denominator: str) -> Any:
    """A unit's own mean; null where it has none."""
    return cast(exposures.c[numerator], Float(53)) / func.nullif(exposures.c[denominator], 0)


async def count_values(
    connection: AsyncConnection, experiment: str, epoch: int, arm: str, column: str
) -> int:
    """How many units of an arm have a value in `column`."""
    found = await connection.execute(
        select(func.count(exposures.c[column])).where(_settled(experiment, epoch, arm))
    )
    return int(found.scalar_one())


async def ranked(
    connection: AsyncConnection, experiment: str, epoch: int, arm: str, column: str, ranks: Iterable[int]
) -> dict[int, float]:
    """The values at these ranks (from 1) among an arm's, sorted."""
    value = exposures.c[column]
    place = func.row_number().over(order_by=value).label("place")
    inner: Select[Any] = select(value.label("value"), place).where(
        _settled(experiment, epoch, arm), value.is_not(None)
    )
    sub = inner.subquery()
    wanted = select(sub.c.place, sub.c.value).where(sub.c.place.in_(sorted(set(ranks))))
    return {int(rank): float(found) for rank, found in await connection.execute(wanted)}


def _settled(experiment: str, epoch: int, arm: str) -> Any:
    table = exposures.c
    return (
        (table.experiment == experiment)
        & (table.epoch == epoch)
        & (table.arm == arm)
        & (table.chosen == 0)
        & table.settled.is_not(None)
    )
