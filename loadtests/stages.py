"""The stages of a load test: each loads the gateway in its way and gives figures and what plots need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests import figures, shapes
from loadtests.bench.processes import Server
from loadtests.figures import Figures
from loadtests.run import Load, Run, run

POLICIES = ("standard", "open")
BY_POLICY = ("saturation", "overload")  # their figures are one set for each policy
SETTLING = 1.0  # seconds at a step's beginning that don't count
RISING = 4.0  # the same of an overload


@dataclass(frozen=True)
class Scale:
    """How long to look, in seconds, and how many callers."""

    mix: float = 20.0
    spike: float = 8.0
    step: float = 6.0
    overload: float = 20.0
    soak: float = 0.0
    callers: int = 20
    levels: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)


SCALES = {
    "smoke": Scale(mix=2, spike=1, step=1, overload=2, levels=(1, 8)),  # does it run? Not for quoting
    "short": Scale(),
    "full": Scale(mix=60, spike=15, step=10, overload=30),
    "soak": Scale(soak=1_800),
}


@dataclass
class Bench:
    """Where a run takes place."""

    url: str
    home: Path
    scale: Scale
    server: Server | None = None
    policies: tuple[str, ...] = POLICIES
    seed: int = 0
    say: Callable[[str], None] = print
    seen: dict[str, Run] = field(default_factory=dict)  # by name, for the plots

    def run(self, name: str, load: Load) -> Run:
        """One run of locust, kept under its name."""
        self.seen[name] = run(load, self.url, self.home, name.replace(".", "-"), self.server)
        return self.seen[name]


def mix(bench: Bench) -> Figures:
    """The mix of callers: a ramp, then a steady load."""
    scale = bench.scale
    plan = shapes.ramp(scale.callers, over=scale.mix / 4, hold=scale.mix * 3 / 4)
    seen = bench.run("mix", Load(plan, think=1.0, seed=bench.seed)).requests
    whole = figures.of_requests(seen, 0.0, plan.seconds)
    gaps = figures.spread([gap for row in seen if row.outcome == "ok" for gap in row.gaps_ms])
    return {**whole, "callers": scale.callers, "kinds": figures.of_kinds(seen), "gap_ms": gaps}


def spike(bench: Bench) -> Figures:
    """The mix, suddenly with six times the callers, and what is left of that afterwards."""
    scale = bench.scale
    base, peak = scale.callers, 6 * scale.callers
    plan = shapes.spike(base, peak, before=scale.spike, during=scale.spike, after=2 * scale.spike)
    seen = bench.run("spike", Load(plan, think=1.0, seed=bench.seed)).requests
    whole = figures.of_requests(seen, 0.0, plan.seconds)
    parts = {
        "before": figures.of_requests(seen, 0.0, scale.spike),
        "during": figures.of_requests(seen, scale.spike, 2 * scale.spike),
        "after": figures.of_requests(seen, 3 * scale.spike, 4 * scale.spike),
    }
    return {**whole, **parts, "callers": base, "peak": peak}


def saturation(bench: Bench) -> Figures:
    """More and more callers without a pause, each asking again when it was answered or refused."""
    found: Figures = {}
    for policy in bench.policies:
        scale = bench.scale
        plan = shapes.steps(scale.levels, seconds=scale.step)
        load = Load(plan, policy=policy, callers=("Chat",), seed=bench.seed)
        seen = bench.run(f"saturation.{policy}", load).requests
        rows = [
            {"callers": callers, **figures.of_requests(seen, i * scale.step + SETTLING, (i + 1) * scale.step)}
            for i, callers in enumerate(scale.levels)
        ]
        best = max(rows, key=lambda row: float(row["goodput"]))
        found[policy] = {
            "steps": rows,
            "peak": best["goodput"],
            "peak_callers": best["callers"],
            "failed": sum(row["failed"] for row in rows),
        }
        bench.say(f"  {policy}: {best['goodput']:.1f} req/s at the most, with {best['callers']} callers")
    return found


def overload(bench: Bench, capacity: Figures) -> Figures:
    """Ten times as many requests a second as the peak of `capacity` (of `saturation`), come what may."""
    found: Figures = {}
    for policy in bench.policies:
        peak, seconds = float(capacity[policy]["peak"]), bench.scale.overload
        plan = shapes.soak(1, seconds=seconds)
        load = Load(plan, policy=policy, rate=10 * peak, seed=bench.seed)
        seen = bench.run(f"overload.{policy}", load).requests
        whole = figures.of_requests(seen, RISING, seconds)
        found[policy] = {
            **whole,
            "capacity": peak,
            "times_capacity": round(whole["offered"] / peak, 2),
            "goodput_share": round(whole["goodput"] / peak, 3),
            "admitted_p99_ms": whole["ms"]["p99"],
            "refused_p99_ms": whole["refused_ms"]["p99"],
        }
        bench.say(
            f"  {policy}: {whole['offered']:.0f} req/s offered, {whole['goodput']:.1f} answered "
            f"({found[policy]['goodput_share']:.0%} of the peak), the rest refused "
            f"in {whole['refused_ms']['p99']:.0f} ms (p99)"
        )
    return found


def soak(bench: Bench) -> Figures:
    """The mix for a long time; does memory grow?"""
    scale = bench.scale
    plan = shapes.soak(scale.callers, seconds=scale.soak)
    seen = bench.run("soak", Load(plan, think=1.0, seed=bench.seed))
    whole = figures.of_requests(seen.requests, 0.0, plan.seconds)
    roles = sorted({role for sample in seen.samples for role in sample.rss_mib} - {"others"})
    memory: dict[str, Any] = {role: figures.growth(seen.samples, role) for role in roles}
    kinds = figures.of_kinds(seen.requests)
    return {**whole, "seconds": scale.soak, "callers": scale.callers, "kinds": kinds, "memory": memory}


def stages(scale: Scale) -> tuple[str, ...]:
    """What a run of this scale consists of."""
    return ("soak",) if scale.soak else ("mix", "spike", "saturation", "overload")


def measure(bench: Bench, name: str, so_far: Figures) -> Figures:
    """One stage. `so_far` are the figures of the ones before."""
    if name == "overload":
        return overload(bench, so_far["saturation"])
    made: dict[str, Callable[[Bench], Figures]] = {
        "mix": mix,
        "spike": spike,
        "saturation": saturation,
        "soak": soak,
    }
    return made[name](bench)
