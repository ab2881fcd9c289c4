"""Writes docs/RESULTS-experiments.md: what simulation says of the intervals.

    python -m tests.service.experiments.results

A few minutes on one core. The short form of it is in test_sequences.py, with every run of the tests.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np

from service.experiments.sequences import MIN_UNITS, Floats
from tests.service.experiments.looks import (
    crossings,
    differences,
    flips,
    lognormal,
    mismatches,
    misses,
    normal,
    running,
    sessions,
)

matplotlib.use("agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[3] / "docs"
RUNS, UNITS = 2_000, 5_000
SCENARIOS = (
    ("normal values", normal, 0.5, False),
    ("skewed values (lognormal, sigma 0.75)", lognormal, 0.5, False),
    ("the same, 10 % of units treated", lognormal, 0.1, False),
    ("a rate of 1 %", flips(0.01), 0.5, True),
    ("a rate of 5 %, 10 % of units treated", flips(0.05), 0.1, True),
    ("a rate of 30 %", flips(0.3), 0.5, True),
    ("sessions of 1 to 12 requests, alike within, 5 % blocked", sessions(0.05, 1.0), 0.5, True),
)


def interval(share: float, runs: int) -> str:
    """A share in percent with its 95 % Wilson interval."""
    z, n = 1.96, runs
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return f"{share:.1%} ({middle - half:.1%} to {middle + half:.1%})"


def naive(runs: int, units: int, seed: int, *, alpha: float = 0.05) -> Floats:
    """When a z-test after every unit first said that two like arms differ."""
    rng = np.random.default_rng(seed)
    first = np.full(runs, np.inf)
    for start in range(0, runs, 100):
        treated = rng.random((100, units)) < 0.5
        values = normal(rng, (100, units))
        one, other = running(values, treated), running(values, ~treated)
        enough = (np.cumsum(treated, axis=1) >= MIN_UNITS) & (np.cumsum(~treated, axis=1) >= MIN_UNITS)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(one.variance / one.n + other.variance / other.n)
            seen = enough & (np.abs(one.mean - other.mean) > 1.96 * error)
        found = seen.any(axis=1)
        first[start : start + 100][found] = seen.argmax(axis=1)[found] + 1
    return first


def fixed_size(effect: float, power: float = 0.8) -> int:
    """Units in all that a two-sided fixed test at 5 % needs, of deviation 1."""
    z = {0.8: 0.8416, 0.9: 1.2816}[power]
    return math.ceil(4 * (1.96 + z) ** 2 / effect**2)


def curve(first: Floats, label: str, style: str) -> None:
    at = np.unique(np.geomspace(2 * MIN_UNITS, UNITS, 200).astype(int))
    plt.plot(at, [100 * (first <= n).mean() for n in at], style, label=label)


def false_alarms() -> tuple[str, dict[str, Floats]]:
    rows, kept = [], {}
    for seed, (name, draw, share, rate) in enumerate(SCENARIOS, 10):
        first = differences(draw, runs=RUNS, units=UNITS, seed=seed, share=share, rate=rate)
        kept[name] = first
        rows.append(f"| difference: {name} | {interval(np.isfinite(first).mean(), RUNS)} |")
    for bound in (0.01, 0.1):
        first = crossings(bound, bound, runs=RUNS, units=2_000, seed=30)
        rows.append(
            f"| limit on a rate of {bound:.0%}, exactly there | {interval(np.isfinite(first).mean(), RUNS)} |"
        )
    for p in (0.5, 0.95):
        missed = misses(p, runs=RUNS, units=2_000, seed=31)
        rows.append(f"| interval of the {p:.0%} quantile | {interval(missed, RUNS)} |")
    first = mismatches(0.5, 0.5, runs=RUNS, units=2_000, seed=32, alpha=0.05)
    rows.append(f"| sample ratio mismatch, at 5 % | {interval(np.isfinite(first).mean(), RUNS)} |")
    return "\n".join(rows), kept


def power() -> tuple[str, Floats]:
    rows, kept = [], np.array([])
    for effect in (0.3, 0.2, 0.1):
        needed = fixed_size(effect)
        runs, units = 1_000, 6 * needed
        plan = 1.5 * needed
        first = differences(normal, runs=runs, units=units, seed=40, effect=effect, plan=plan)
        middle, most = (np.quantile(first, q) for q in (0.5, 0.8))
        early = (first <= needed).mean()
        rows.append(
            f"| {effect} | {needed} | {middle:.0f} ({middle / needed:.2f}) "
            f"| {most:.0f} ({most / needed:.2f}) | {early:.0%} | {np.isfinite(first).mean():.1%} |"
        )
        if effect == 0.2:
            kept = first
    return "\n".join(rows), kept


def main() -> None:
    """Simulate, draw, write."""
    alarms, firsts = false_alarms()
    peeked = naive(RUNS, UNITS, 50)
    table, stopped = power()
    plt.figure(figsize=(7, 4))
    curve(peeked, "z-test after every unit", "C3-")
    for index, name in enumerate(("normal values", "a rate of 1 %", SCENARIOS[-1][0])):
        curve(firsts[name], name, f"C{index}--")
    plt.axhline(5, color="grey", linewidth=0.8)
    plt.xscale("log")
    plt.xlabel("units so far")
    plt.ylabel("experiments with a false alarm, %")
    plt.legend(frameon=False)
    folder = DOCS / "results"
    plt.savefig(folder / "experiments-false-alarms.svg", bbox_inches="tight", metadata={"Date": None})
    plt.figure(figsize=(7, 4))
    needed = fixed_size(0.2)
    plt.hist(stopped[np.isfinite(stopped)], bins=60, color="C0")
    plt.axvline(needed, color="C3", label=f"a fixed test with 80 % power: {needed}")
    plt.xlabel("units until the difference is seen (effect 0.2)")
    plt.ylabel("experiments")
    plt.legend(frameon=False)
    plt.savefig(folder / "experiments-stopping.svg", bbox_inches="tight", metadata={"Date": None})
    page = PAGE.format(
        runs=RUNS, units=UNITS, alarms=alarms, naive=interval(np.isfinite(peeked).mean(), RUNS), power=table
    )
    (DOCS / "RESULTS-experiments.md").write_text(page, encoding="utf-8")


PAGE = """# Experiments: what simulation says

Written by `python -m tests.service.experiments.results`; fixed seeds, the functions are the gateway's own
(`service/experiments/sequences.py`). A look after every single unit: {units} units a run for differences,
2000 for limits, quantiles and mismatch.

## False alarms

Two arms that are alike, {runs} experiments each. The share in which *any* look raised an alarm at alpha 5 %,
with its 95 % interval:

| | experiments with a false alarm |
|---|---|
{alarms}
| for comparison: a z-test after every unit | {naive} |

![False alarms by the number of units](results/experiments-false-alarms.svg)

Differences are asymptotic: they begin at 100 units an arm, and hold for values whose mean settles by then.
Rates, limits, quantiles and the mismatch test are exact; their shares lie below 5 % because a run of 2000
units ends long before all times.

## Power

Normal values, half of the units treated; the effect is in standard deviations. Beside a test of fixed size,
planned for 80 % power and looked at once. `before`: found before the fixed test would have looked; `in the
end`: within six times its size.

| effect | fixed test, units | sequence, median (ratio) | 80 % by (ratio) | before | in the end |
|---|---|---|---|---|---|
{power}

![When the difference is seen](results/experiments-stopping.svg)

That is the price of looking at any time: who can wait for a planned size needs fewer units for the same
power; who stops as soon as a large effect shows needs fewer than planned.
"""


if __name__ == "__main__":
    main()
