"""What a reward model is worth when it has been trained: accuracy, calibration, length, hacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policies.manifest import Evaluation
from training.data.preference_data import as_pairs
from training.data.preferences import Comparison
from training.errors import TrainingError
from training.evaluate.bias import LengthBias, RewardLimits, hack_rates, length_bias, reward_checks
from training.evaluate.metrics import Figure
from training.evaluate.reward import Calibration, accuracy, calibrate, differences, first_messages
from training.publish import Check
from training.reward_model import RewardModel

HACKED = 200
"""On so many held-out prompts, at most, hacks are tried: each is read six times more."""


@dataclass(frozen=True, slots=True)
class RewardResult:
    """A trained reward model and what it is worth. `measured_on` is "held-out pairs", or "training pairs"
    where none were held out: then the figures flatter."""

    model: RewardModel
    history: list[dict[str, Any]]
    accuracy: Figure
    calibration: Calibration
    length: LengthBias
    checks: tuple[Check, ...]
    measured_on: str

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def report(self) -> str:
        """A line per check."""
        lines = [f"measured on {self.accuracy.n} {self.measured_on}"]
        return "\n".join([*lines, *(f"{'pass' if c.passed else 'FAIL'}  {c}" for c in self.checks)])


def measure(
    reward: RewardModel,
    preferences: Sequence[Comparison],
    held_out: Sequence[Comparison],
    history: list[dict[str, Any]],
    limits: RewardLimits,
    seed: int,
) -> RewardResult:
    """Accuracy, calibration and the checks, on the held-out pairs or, without any, on the training pairs."""
    pairs = [pair for comparison in held_out or preferences for pair in as_pairs(comparison)]
    if not pairs:
        raise TrainingError("there is no comparison to measure on; give preferences, or held-out ones")
    difference_P = differences(reward, pairs)
    figure = accuracy(difference_P, pairs, seed)
    calibration = calibrate(difference_P, first_messages(pairs))
    length = length_bias(difference_P, pairs, seed)
    good = list(dict.fromkeys((pair.prompt, pair.chosen) for pair in pairs))
    rates = hack_rates(reward, good[:HACKED])
    checks = reward_checks(figure, calibration, length, rates, limits)
    where = "held-out pairs" if held_out else "training pairs"
    return RewardResult(reward, history, figure, calibration, length, tuple(checks), where)


def evaluations(result: RewardResult) -> list[Evaluation]:
    """As the checkpoint's manifest has them."""
    f, on = result.accuracy, result.measured_on
    figures = [
        Evaluation(metric="reward accuracy", value=f.value, low=f.low, high=f.high, data=on, n=f.n),
        Evaluation(metric="calibration error", value=result.calibration.ece_scaled, data=on, n=f.n),
        Evaluation(metric="length correlation", value=result.length.correlation, data=on, n=f.n),
    ]
    failed = sum(not check.passed for check in result.checks)
    on = ", ".join(check.name for check in result.checks)
    return [*figures, Evaluation(metric="failed reward checks", value=failed, data=on, n=len(result.checks))]
