"""How good a reward model is on pairs that it was not trained on: accuracy, and probabilities that hold.

Accuracy is the share of pairs whose chosen reply scores higher, ties as half; its interval is a bootstrap
over *prompts*, since pairs about one prompt are not independent. Calibration is of the Bradley–Terry
probability σ(Δ/T): of the pairs that the model gives 80 %, four in five should be right.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from training.data.preferences import Preference
from training.errors import TrainingError
from training.evaluate.metrics import Figure, Floats
from training.reward_model import RewardFunction, RewardModel


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of like confidence: its mean, the share that is right, and how many they are."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Expected calibration error of σ(Δ) as it is, and of σ(Δ/T).

    `temperature` is fitted on all pairs; `ece_scaled` and the curve are cross-fitted: each half of the
    prompts is measured under the temperature of the other half.
    """

    ece: float
    temperature: float
    ece_scaled: float
    curve: tuple[Bin, ...]

    def __str__(self) -> str:
        return f"ECE {self.ece:.3f}, {self.ece_scaled:.3f} at temperature {self.temperature:.2f}"


def differences(reward: RewardFunction, preferences: Sequence[Preference]) -> Floats:
    """Score of the chosen less that of the rejected reply, `[P]`.

    A reward model answers with its raw score under the pair's own objective (differences of those are
    Bradley–Terry logits), with its mix for objectives that it does not have; any other function with itself.
    """
    prompts = [p.prompt for p in preferences]
    chosen, rejected = [p.chosen for p in preferences], [p.rejected for p in preferences]
    if not isinstance(reward, RewardModel):
        return np.asarray((reward(prompts, chosen) - reward(prompts, rejected)).double().numpy())
    raw_PK = reward.raw(prompts, chosen) - reward.raw(prompts, rejected)
    mix_P = reward.about.mix(raw_PK + raw_PK.new_tensor(reward.about.mean))
    columns = {name: raw_PK[:, k] for k, name in enumerate(reward.objectives)}
    values = [float(columns.get(p.objective, mix_P)[row]) for row, p in enumerate(preferences)]
    return np.asarray(values, dtype=np.float64)


def right(difference_P: Floats) -> Floats:
    """1 where the chosen reply scores higher, ½ for ties, `[P]`."""
    return np.asarray((difference_P > 0) + 0.5 * (difference_P == 0), dtype=np.float64)


def clustered_mean(
    values_P: Floats, clusters: Sequence[Hashable], seed: int = 0, resamples: int = 2000
) -> Figure:
    """The mean with its 95 % percentile-bootstrap interval over clusters (Cameron et al. 2008)."""
    if not len(values_P):
        raise TrainingError("there is no pair to measure on; hold out a larger share")
    index = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    places = np.array([index[cluster] for cluster in clusters])
    sums, counts = np.bincount(places, values_P), np.bincount(places)
    picks = np.random.default_rng(seed).integers(len(index), size=(resamples, len(index)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Figure(float(values_P.mean()), float(low), float(high), len(values_P))


def accuracy(difference_P: Floats, preferences: Sequence[Preference], seed: int = 0) -> Figure:
    """Pairwise accuracy, with its interval over prompts."""
    return clustered_mean(right(difference_P), first_messages(preferences), seed)


def first_messages(preferences: Sequence[Preference]) -> list[str]:
    """What pairs that belong together share: the first user message, as data is split by it."""
    return [next(m.content for m in p.prompt if m.role == "user").casefold() for p in preferences]


def calibrate(difference_P: Floats, clusters: Sequence[Hashable], bins: int = 10) -> Calibration:
    """Calibration of σ(Δ) on pairs; `clusters` keep the pairs of one prompt in the same half."""
    order = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    half_P = np.array([order[cluster] % 2 == 0 for cluster in clusters])
    scaled_P = difference_P.astype(np.float64).copy()
    for measured in (half_P, ~half_P):
        if measured.any() and (~measured).any():
            scaled_P[measured] = difference_P[measured] / fit_temperature(difference_P[~measured])
    curve = reliability(scaled_P, bins)
    return Calibration(
        expected_error(reliability(difference_P, bins)),
        fit_temperature(difference_P),
        expected_error(curve),
        curve,
    )


def fit_temperature(difference_P: Floats) -> float:
    """The T in [0.05, 100] that makes the labels likeliest under σ(Δ/T) (Guo et al. 2017, 1706.04599)."""

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -difference_P / np.exp(log_temperature)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(100)), method="bounded")
    return float(np.exp(found.x))


def reliability(difference_P: Floats, bins: int = 10) -> tuple[Bin, ...]:
    """Pairs binned by the confidence σ(|Δ|) in their order, from ½ to 1; empty bins are left out."""
    confidence_P, right_P = expit(np.abs(difference_P)), right(difference_P)
    places = np.minimum(((confidence_P - 0.5) * 2 * bins).astype(int), bins - 1)
    return tuple(
        Bin(
            float(confidence_P[places == b].mean()),
            float(right_P[places == b].mean()),
            int((places == b).sum()),
        )
        for b in np.unique(places)
    )


def expected_error(curve: Sequence[Bin]) -> float:
    """Expected calibration error: mean gap between confidence and accuracy, weighted by pairs."""
    return sum(b.n * abs(b.confidence - b.accuracy) for b in curve) / sum(b.n for b in curve)
