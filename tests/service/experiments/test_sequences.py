"""Intervals that hold at every look: proven by looking after every unit, 2,000 times."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.experiments import sequences
from service.experiments.sequences import Moments, Rate
from tests.service.experiments.looks import (
    Draw,
    crossings,
    differences,
    flips,
    lognormal,
    mismatches,
    misses,
    normal,
    sessions,
)

RUNS = 2_000


def at_most(alpha: float, seen: float) -> bool:
    """Whether a share of runs doesn't speak against `alpha`: three standard errors of a binomial."""
    return seen <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / RUNS)


@pytest.mark.parametrize(
    ("draw", "rate", "share"),
    [
        (normal, False, 0.5),
        (lognormal, False, 0.5),
        (lognormal, False, 0.25),
        (flips(0.01), True, 0.5),
        (flips(0.3), True, 0.5),
        (flips(0.05), True, 0.1),
        (sessions(0.05, 1.0), True, 0.5),
    ],
    ids=["normal", "lognormal", "lognormal-25%", "1%", "30%", "5%-of-10%", "sessions"],
)
def test_alike_arms_differ_in_5_percent_of_experiments_at_most(draw: Draw, rate: bool, share: float) -> None:
    first = differences(draw, runs=RUNS, units=1_200, seed=1, share=share, rate=rate)
    assert np.isfinite(first).mean() <= 0.05


def test_a_difference_is_found_with_few_more_units_than_a_fixed_test_needs() -> None:
    """Two normal arms, 0.2 deviations apart: 785 units in all give a fixed-horizon test 80 % power."""
    first = differences(normal, runs=500, units=3_000, seed=2, effect=0.2)
    assert np.isfinite(first).mean() >= 0.97
    assert np.median(first) <= 1.5 * 785
    assert (first <= 785).mean() >= 0.3


@pytest.mark.parametrize("bound", [0.01, 0.1])
def test_a_limit_acts_wrongly_in_5_percent_at_most_and_soon_where_it_must(bound: float) -> None:
    assert at_most(0.05, np.isfinite(crossings(bound, bound, runs=RUNS, units=400, seed=3)).mean())
    crossed = crossings(3 * bound, bound, runs=200, units=3_000, seed=4)
    assert np.isfinite(crossed).mean() == 1.0
    assert np.median(crossed) <= 12 / bound


@pytest.mark.parametrize("p", [0.5, 0.95])
def test_quantiles_are_missed_in_5_percent_at_most(p: float) -> None:
    assert at_most(0.05, misses(p, runs=RUNS, units=1_000, seed=5))


def test_units_as_planned_raise_no_alarm_and_others_do() -> None:
    planned = mismatches(0.5, 0.5, runs=RUNS, units=1_500, seed=6, alpha=0.05)
    assert at_most(0.05, np.isfinite(planned).mean())
    assert np.isfinite(mismatches(0.42, 0.5, runs=200, units=3_000, seed=7)).mean() >= 0.99


fractions = st.dictionaries(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(1, 2_000), min_size=1)


@settings(max_examples=30)
@given(fractions, st.floats(0.001, 0.2))
def test_a_rates_interval_holds_its_mean_and_lies_between_0_and_1(
    seen: dict[float, int], alpha: float
) -> None:
    rate = Rate.of(seen)
    interval = rate.interval(alpha)
    assert interval.low is not None
    assert interval.high is not None
    assert 0 <= interval.low <= rate.mean + 1e-12
    assert rate.mean - 1e-12 <= interval.high <= 1
    wider = rate.interval(alpha / 2)
    assert (wider.low or 0) <= interval.low + 1e-9
    assert (wider.high or 0) >= interval.high - 1e-9


@settings(max_examples=30)
@given(fractions)
def test_mirrored_rates_have_mirrored_intervals(seen: dict[float, int]) -> None:
    one = Rate.of(seen).interval(0.05)
    other = Rate.of({1 - value: count for value, count in seen.items()}).interval(0.05)
    assert one.low == pytest.approx(1 - (other.high or 0), abs=1e-6)


def test_intervals_tighten_and_begin_when_there_is_enough() -> None:
    few, many = Moments(99, 0, 99), Moments(1e6, 0, 1e6)
    assert sequences.mean(few, 0.05, 1_000).low is None
    narrow = sequences.mean(many, 0.05, 1_000)
    assert narrow.high is not None
    assert 0 < narrow.high < 0.006
    assert sequences.difference(few, many, 0.05, 1_000).low is None
    assert sequences.difference(Moments(), many, 0.05, 1_000) == sequences.NOTHING


def test_a_quantiles_ranks_enclose_its_estimate_or_say_that_nobody_knows() -> None:
    ranks = sequences.quantile(10, 0.95, 0.05, 1_000)
    assert (ranks.estimate, ranks.high) == (10, None)
    ranks = sequences.quantile(10_000, 0.5, 0.05, 1_000)
    assert ranks.low is not None
    assert ranks.high is not None
    assert 4_700 < ranks.low < 5_000 < ranks.high < 5_300


def test_units_of_an_arm_without_a_share_are_a_mismatch() -> None:
    assert sequences.mismatch({"a": 10, "b": 1}, {"a": 1.0, "b": 0.0}) == math.inf
