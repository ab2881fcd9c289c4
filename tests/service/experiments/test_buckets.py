"""Units stay on their arms, arms get their shares, and when shares change as few units move as can."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.experiments.buckets import choose, fraction

UNITS = [f"session:{number}" for number in range(4_000)]
shares = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1, max_size=5)


@given(st.text(), shares, st.floats(1e-3, 1e3))
def test_the_same_unit_gets_the_same_arm_whatever_the_scale(
    unit: str, weights: dict[str, float], scale: float
) -> None:
    arm = choose("e", weights, unit)
    assert arm in weights
    assert choose("e", dict(reversed(weights.items())), unit) == arm
    scaled = {name: weight * scale for name, weight in weights.items()}
    assert choose("e", scaled, unit) == arm


@given(shares, st.data())
def test_an_arm_whose_weight_grows_only_gains_and_nobody_else_swaps(
    weights: dict[str, float], data: st.DataObject
) -> None:
    grown = data.draw(st.sampled_from(sorted(weights)))
    more = {**weights, grown: weights[grown] * data.draw(st.floats(1, 50))}
    for unit in UNITS[:25]:
        before, after = choose("e", weights, unit), choose("e", more, unit)
        assert after in (before, grown)


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1}, {"a": 99, "b": 1}, {"a": 5, "b": 3, "c": 2}])
def test_arms_get_their_shares(weights: dict[str, float]) -> None:
    seen = Counter(choose("e", weights, unit) for unit in UNITS)
    for arm, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(seen[arm] - len(UNITS) * share) < 4.5 * math.sqrt(len(UNITS) * share * (1 - share))


def test_a_ramp_moves_no_more_units_than_it_must() -> None:
    steps = [{"old": 1 - share, "new": share} for share in (0.01, 0.05, 0.25, 1.0)]
    for before, after in itertools.pairwise(steps):
        moved = [u for u in UNITS if choose("e", before, u) != choose("e", after, u)]
        assert {choose("e", after, unit) for unit in moved} == {"new"}
        least = after["new"] - before["new"]
        assert abs(len(moved) / len(UNITS) - least) < 4.5 * math.sqrt(least / len(UNITS))


@settings(max_examples=25)
@given(
    st.lists(st.floats(0.05, 1), min_size=3, max_size=3), st.lists(st.floats(0.05, 1), min_size=3, max_size=3)
)
def test_any_change_moves_at_most_what_theory_says(one: list[float], other: list[float]) -> None:
    p, q = ([weight / sum(weights) for weight in weights] for weights in (one, other))
    before, after = (dict(zip("abc", weights, strict=True)) for weights in (p, q))
    distance = sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2
    most = 2 * distance / (1 + distance)
    units = UNITS[:600]
    moved = sum(choose("e", before, unit) != choose("e", after, unit) for unit in units)
    assert moved / len(units) <= most + 4.5 * math.sqrt(most / len(units)) + 1e-9


def test_experiments_are_independent_of_one_another() -> None:
    weights = {"a": 1, "b": 1}
    both = Counter((choose("e", weights, unit), choose("f", weights, unit)) for unit in UNITS)
    assert all(abs(count - len(UNITS) / 4) < 4.5 * math.sqrt(len(UNITS) * 3 / 16) for count in both.values())


def test_an_arm_without_a_share_gets_nobody() -> None:
    assert {choose("e", {"a": 0.0, "b": 1.0}, unit) for unit in UNITS[:200]} == {"b"}


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_fractions_lie_strictly_between_0_and_1(parts: list[str]) -> None:
    assert 0 < fraction(*parts) < 1
