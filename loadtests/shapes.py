"""How the number of callers goes over time: straight lines between points (seconds, callers).

Ramp, spike, steps and soak are such lines; `PlannedShape` in `locustfile.py` hands them to locust.
"""

from __future__ import annotations

from dataclasses import dataclass

Point = tuple[float, int]


@dataclass(frozen=True)
class Plan:
    """Points in the order of time; the run ends at the last. Written as `0:1,30:20,60:20`."""

    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        times = [at for at, _ in self.points]
        if len(times) < 2 or times[0] != 0 or times != sorted(times) or min(u for _, u in self.points) < 0:
            raise ValueError(f"a plan needs points from 0 s on, in order, without negative callers: {self}")

    @classmethod
    def parse(cls, text: str) -> Plan:
        """From its written form. Raises `ValueError`."""
        try:
            pairs = [item.split(":") for item in text.split(",")]
            points = tuple((float(at), int(users)) for at, users in pairs)
        except ValueError:
            raise ValueError(
                f"a plan is SECONDS:CALLERS,…, for instance 0:1,30:20,60:20; got {text!r}"
            ) from None
        return cls(points)

    def __str__(self) -> str:
        return ",".join(f"{at:g}:{users}" for at, users in self.points)

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.points[-1][0]

    def users(self, at: float) -> int | None:
        """How many callers there are `at` so many seconds; None when it is over."""
        if at >= self.seconds:
            return None
        for (begin, low), (end, high) in zip(self.points, self.points[1:], strict=False):
            if begin <= at < end:
                return round(low + (high - low) * (at - begin) / (end - begin))
        return self.points[-1][1]


def ramp(users: int, *, over: float, hold: float) -> Plan:
    """From one caller to `users` in `over` seconds, and so many for `hold` seconds."""
    return Plan(((0, 1), (over, users), (over + hold, users)))


def spike(base: int, peak: int, *, before: float, during: float, after: float) -> Plan:
    """`base` callers, all at once `peak`, and back."""
    rise, fall = before, before + during
    return Plan(((0, base), (rise, base), (rise, peak), (fall, peak), (fall, base), (fall + after, base)))


def steps(levels: tuple[int, ...], *, seconds: float) -> Plan:
    """Each number of callers for so many seconds."""
    points: list[Point] = []
    for i, users in enumerate(levels):
        points += [(i * seconds, users), ((i + 1) * seconds, users)]
    return Plan(tuple(points))


def soak(users: int, *, seconds: float) -> Plan:
    """The same number of callers for a long time."""
    return Plan(((0, users), (seconds, users)))
