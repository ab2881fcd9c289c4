"""Bradley–Terry on pairs whose utilities are known: differences are recovered, probabilities hold.

Twelve items with utilities u; a pair (i, j) is won by i with probability σ(u_i - u_j). A table of rewards,
one free number per item, is fitted with the losses that train reward models.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.data.preferences import Preference, as_prompt
from training.evaluate.reward import calibrate, differences, expected_error, fit_temperature, reliability
from training.losses.reward import bradley_terry, margin_optimum

ITEMS = 12


def utilities(seed: int) -> Tensor:
    return torch.randn(ITEMS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(utility_I: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(winners, losers) `[P]` of random pairs."""
    generator = torch.Generator().manual_seed(seed)
    first_P = torch.randint(ITEMS, (count,), generator=generator)
    second_P = (first_P + torch.randint(1, ITEMS, (count,), generator=generator)) % ITEMS
    chance_P = torch.sigmoid(utility_I[first_P] - utility_I[second_P])
    won_P = torch.rand(count, generator=generator, dtype=torch.float64) < chance_P
    return torch.where(won_P, first_P, second_P), torch.where(won_P, second_P, first_P)


def fit(
    winner_P: Tensor, loser_P: Tensor, margin_P: Tensor | None = None, soft_P: Tensor | None = None
) -> Tensor:
    """The rewards `[I]` of mean 0 that minimise the mean loss (convex: L-BFGS finds the optimum)."""
    reward_I = torch.zeros(ITEMS, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [reward_I], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = bradley_terry(reward_I[winner_P] - reward_I[loser_P], margin_P, soft_P).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return reward_I.detach() - reward_I.detach().mean()


def every_pair() -> tuple[Tensor, Tensor]:
    first_P, second_P = torch.triu_indices(ITEMS, ITEMS, offset=1)
    return first_P, second_P


def test_with_every_pairs_probability_known_the_utilities_come_back_exactly() -> None:
    utility_I = utilities(0)
    first_P, second_P = every_pair()
    soft_P = torch.sigmoid(utility_I[first_P] - utility_I[second_P])
    found_I = fit(first_P, second_P, soft_P=soft_P)
    assert torch.allclose(found_I, utility_I - utility_I.mean(), atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_from_noisy_pairs_the_differences_are_recovered_and_calibrated(seed: int) -> None:
    utility_I = utilities(seed)
    found_I = fit(*draw(utility_I, 20_000, seed))
    truth_I = utility_I - utility_I.mean()
    assert float((found_I - truth_I).abs().max()) < 0.12
    winner_P, loser_P = draw(utility_I, 20_000, seed + 100)
    new_P = (found_I[winner_P] - found_I[loser_P]).numpy()
    assert expected_error(reliability(new_P)) < 0.015
    assert fit_temperature(new_P) == pytest.approx(1.0, abs=0.06)


def test_the_error_falls_as_one_over_the_root_of_the_pairs() -> None:
    """The rate of maximum likelihood: 16 times the pairs, a quarter of the error."""
    errors = []
    for count in (1_000, 16_000):
        gaps = []
        for seed in range(12):
            utility_I = utilities(seed)
            found_I = fit(*draw(utility_I, count, seed))
            gaps.append(float((found_I - utility_I + utility_I.mean()).square().mean()))
        errors.append(math.sqrt(sum(gaps) / len(gaps)))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.25)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_with_strengths_the_fit_is_the_closed_form_of_the_margin_loss(scale: float) -> None:
    """Two items: the loss with a margin is least where `margin_optimum` says, so its bias is known."""
    first_P, second_P = torch.tensor([0]), torch.tensor([1])
    p, margin = torch.tensor([0.8], dtype=torch.float64), torch.tensor([scale * 1.5], dtype=torch.float64)
    reward_I = fit(first_P, second_P, margin, p)
    assert float(reward_I[0] - reward_I[1]) == pytest.approx(float(margin_optimum(p, margin)), abs=1e-5)
    assert float(reward_I[0] - reward_I[1]) > math.log(0.8 / 0.2)


def test_strengths_that_tell_the_truth_recover_more_from_few_pairs() -> None:
    """Raters who also say how much better: from 60 pairs, the order of items is nearer to the truth."""
    gains = []
    for seed in range(20):
        utility_I = utilities(seed)
        winner_P, loser_P = draw(utility_I, 60, seed)
        strength_P = (utility_I[winner_P] - utility_I[loser_P]).clamp(min=0)
        plain_I, strong_I = (fit(winner_P, loser_P, m) for m in (None, strength_P))
        gains.append(_correlation(strong_I, utility_I) - _correlation(plain_I, utility_I))
    assert sum(gains) / len(gains) > 0.01
    assert sum(gain > 0 for gain in gains) >= 15  # one-sided sign test over 20 seeds: p = 0.021


def test_rewards_trained_with_strengths_are_too_sure_until_a_temperature_is_fitted() -> None:
    utility_I = utilities(5)
    winner_P, loser_P = draw(utility_I, 20_000, 5)
    strength_P = (utility_I[winner_P] - utility_I[loser_P]).abs()
    found_I = fit(winner_P, loser_P, strength_P)
    winner_P, loser_P = draw(utility_I, 20_000, 6)
    new_P = (found_I[winner_P] - found_I[loser_P]).numpy()
    calibration = calibrate(new_P, list(range(len(new_P))))
    assert calibration.temperature > 1.3
    assert calibration.ece > 0.05
    assert calibration.ece_scaled < 0.02


def test_differences_of_any_reward_function_are_taken_per_pair() -> None:
    pairs = [Preference(as_prompt("Hi"), "a" * n, "b" * m) for n, m in ((3, 1), (2, 5))]
    by_length = differences(lambda prompts, replies: torch.tensor([float(len(r)) for r in replies]), pairs)
    assert by_length.tolist() == [2.0, -3.0]


def _correlation(left_I: Tensor, right_I: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left_I, right_I]))[0, 1])
