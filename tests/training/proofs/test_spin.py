"""SPIN stands still exactly where the policy is the data's distribution, and comes nearer to it each time.

An iteration trains against the replies of its own opponent π_t, the policy before it. With the logistic
loss and full coverage its minimum is π_{t+1} ∝ π_t (p_data / π_t)^{1/λ} (Chen et al. 2024, section 5), so the
distance to the data shrinks, in log-odds by the factor 1 − 1/λ.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.training.proofs.discrete import kl, minimized, pairs_of, random_table
from training.losses.preference import pair_loss

X, Y = 2, 4
DATA = random_table(X, Y, seed=5).log_softmax(-1)
START = random_table(X, Y, seed=6).log_softmax(-1)


def spin_loss(policy_XY: Tensor, opponent_XY: Tensor, weight: float) -> Tensor:
    """Expected over prompts, real replies y ~ data and the opponent's own y' ~ π_t; y = y' costs log 2."""
    x, real, own = torch.meshgrid(torch.arange(X), torch.arange(Y), torch.arange(Y), indexing="ij")
    x, real, own = x.flatten(), real.flatten(), own.flatten()
    share = DATA.exp()[x, real] * opponent_XY.exp()[x, own] / X
    return (share * pair_loss("sigmoid", pairs_of(policy_XY, opponent_XY, x, real, own), weight)).sum()


def iterated(start_XY: Tensor, weight: float, iterations: int) -> list[Tensor]:
    policies = [start_XY]
    for _ in range(iterations):
        opponent = policies[-1]
        policies.append(minimized(lambda policy, o=opponent: spin_loss(policy, o, weight), opponent))
    return policies


def test_the_data_s_distribution_is_the_fixed_point() -> None:
    logits = DATA.clone().requires_grad_(True)
    loss = spin_loss(logits.log_softmax(-1), DATA, 1.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-15
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item()), "real and own can't be told apart"


def test_any_other_policy_moves() -> None:
    logits = START.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(spin_loss(logits.log_softmax(-1), START, 1.0), logits)
    assert gradient.abs().max() > 0.01


@pytest.mark.parametrize("weight", [1.0, 2.0, 4.0])
def test_each_iteration_ends_where_the_closed_form_says(weight: float) -> None:
    (_, after) = iterated(START, weight, 1)
    goal = (START + (DATA - START) / weight).log_softmax(-1)
    assert kl(goal, after).max() < 1e-9


def test_the_distance_to_the_data_shrinks_to_nothing() -> None:
    distances = [kl(DATA, policy).mean().item() for policy in iterated(START, 2.0, 10)]
    assert all(later < earlier for earlier, later in pairwise(distances))
    assert distances[0] > 0.1 and distances[-1] < 1e-5


def test_an_opponent_that_does_not_advance_goes_too_far() -> None:
    """Against a frozen opponent the one minimum is reached once: it isn't the data's distribution unless
    λ = 1, and more iterations do not help. That the opponent advances is what makes SPIN converge."""
    frozen = minimized(lambda policy: spin_loss(policy, START, 4.0), START)
    again = minimized(lambda policy: spin_loss(policy, START, 4.0), frozen)
    assert kl(frozen, again).max() < 1e-9
    assert kl(DATA, again).mean() > 10 * kl(DATA, iterated(START, 4.0, 6)[-1]).mean()
