"""Accuracy, calibration, length and hacks: measurements whose right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from training.data.preferences import Preference, as_prompt
from training.errors import ConfigError, TrainingError
from training.evaluate.bias import HACKS, RewardLimits, hack_rates, length_bias, reward_checks
from training.evaluate.metrics import Figure
from training.evaluate.reward import (
    accuracy,
    calibrate,
    clustered_mean,
    expected_error,
    fit_temperature,
    reliability,
    right,
)

GOOD = "Water boils at one hundred degrees at sea level."
PROMPT = as_prompt("At what temperature does water boil?")


def pair(number: int, chosen: str, rejected: str) -> Preference:
    return Preference(as_prompt(f"Question {number}"), chosen, rejected)


def by_length(prompts: object, replies: list[str]) -> Tensor:
    return torch.tensor([float(len(reply)) for reply in replies])


def calibrated(count: int, scale: float) -> np.ndarray:
    """Differences `scale` times the true logits of pairs that are right with that probability."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=1.5, size=count)
    won = rng.random(count) < 1 / (1 + np.exp(-logits))
    return np.asarray(scale * np.where(won, logits, -logits))


def test_ties_are_half_right() -> None:
    assert right(np.array([1.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]


def test_pairs_of_one_prompt_count_as_one_for_the_interval() -> None:
    values = np.repeat([1.0, 0.0], 50)
    apart = clustered_mean(values, list(range(100)))
    together = clustered_mean(values, [i // 10 for i in range(100)])
    assert apart.value == together.value == 0.5
    assert together.high - together.low > 2 * (apart.high - apart.low)
    assert accuracy(np.array([1.0]), [pair(0, "a", "b")]).n == 1
    with pytest.raises(TrainingError, match="no pair"):
        clustered_mean(np.array([]), [])


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_the_temperature_undoes_a_wrong_scale(scale: float) -> None:
    difference = calibrated(20_000, scale)
    assert fit_temperature(difference) == pytest.approx(scale, rel=0.05)
    outcome = calibrate(difference, list(range(len(difference))))
    assert outcome.ece_scaled < 0.015
    if scale != 1.0:
        assert outcome.ece > 0.05


def test_the_reliability_curve_is_over_confidence_and_covers_every_pair() -> None:
    curve = reliability(calibrated(5_000, 1.0))
    assert sum(b.n for b in curve) == 5_000
    assert all(0.5 <= b.confidence <= 1 for b in curve)
    assert [b.confidence for b in curve] == sorted(b.confidence for b in curve)
    certain = reliability(np.array([50.0, -50.0]))
    assert expected_error(certain) == pytest.approx(0.5)


def test_a_reward_for_length_is_seen_as_one_whatever_people_prefer() -> None:
    rng = np.random.default_rng(0)
    pairs = [pair(i, "a" * int(n), "b" * int(m)) for i, (n, m) in enumerate(rng.integers(1, 90, (300, 2)))]
    lengths = np.array([float(len(p.chosen) - len(p.rejected)) for p in pairs])
    found = length_bias(lengths, pairs)
    assert found.correlation == pytest.approx(1.0)
    assert found.controlled is not None
    assert found.controlled.value == pytest.approx(0.5)
    fair = length_bias(rng.normal(loc=1.0, size=300), pairs)
    assert abs(fair.correlation) < 0.15
    assert fair.controlled is not None
    assert fair.controlled.low > 0.7


def test_a_reward_for_length_falls_for_repetition_and_a_sound_one_for_nothing() -> None:
    good = [(PROMPT, GOOD)] * 10
    assert hack_rates(by_length, good)["repetition"].value == 1.0
    assert hack_rates(by_length, good)["empty"].value == 0.0

    def sound(prompts: object, replies: list[str]) -> Tensor:
        return torch.tensor([float(reply == GOOD) for reply in replies])

    assert {figure.value for figure in hack_rates(sound, good).values()} == {0.0}
    assert set(hack_rates(sound, good)) == set(HACKS)


def test_a_hack_that_is_the_good_reply_is_not_counted() -> None:
    rates = hack_rates(by_length, [(PROMPT, PROMPT[-1].content)])
    assert "copied prompt" not in rates


def test_checks_pass_and_fail_on_their_limits() -> None:
    figure = Figure(0.7, 0.6, 0.8, 100)
    good = calibrate(calibrated(2_000, 1.0), list(range(2_000)))
    pairs = [pair(i, "a" * (1 + i % 7), "b" * (1 + i % 5)) for i in range(50)]
    length = length_bias(np.ones(50), pairs)
    rates = {"repetition": Figure(0.3, 0.2, 0.4, 100), "empty": Figure(0.0, 0.0, 0.1, 100)}
    lenient = RewardLimits(hack=0.4)
    assert all(check.passed for check in reward_checks(figure, good, length, rates, lenient))
    strict = RewardLimits(accuracy=0.65, hacks={"repetition": 0.1})
    failed = {c.name for c in reward_checks(figure, good, length, rates, strict) if not c.passed}
    assert failed == {"accuracy", "hack: repetition"}
    with pytest.raises(ConfigError, match="unknown"):
        reward_checks(figure, good, length, rates, RewardLimits(hacks={"bribery": 0.1}))
