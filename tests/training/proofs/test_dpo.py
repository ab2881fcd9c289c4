"""DPO finds π_ref exp(r/β)/Z, the policy that RL with a KL penalty would find, where every pair is compared.

Rafailov et al. 2023, section 4: under Bradley–Terry labels the sigmoid loss is the likelihood of β ρ as
reward, and any reward that explains the labels differs from the true one by a function of the prompt alone,
which Z takes up.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.proofs.discrete import (
    all_pairs,
    kl,
    minimized,
    pairs_of,
    random_table,
    sampled_preferences,
    tilted,
)
from training.losses.preference import PairLoss, pair_loss

X, Y = 3, 5
REFERENCE = random_table(X, Y, seed=0).log_softmax(-1)
REWARD = random_table(X, Y, seed=1)


def expected_loss(kind: PairLoss, policy_XY: Tensor, beta: float, flip: float = 0.0) -> Tensor:
    """Over all pairs, each with the probability that a rater, wrong in a share `flip`, prefers the first."""
    x, a, b = all_pairs(X, Y)
    clean = (REWARD[x, a] - REWARD[x, b]).sigmoid()
    heard = (1 - flip) * clean + flip * (1 - clean)
    pairs = pairs_of(policy_XY, REFERENCE, x, a, b)
    return (heard * pair_loss(kind, pairs, beta, label_smoothing=flip)).mean()


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_with_full_coverage_dpo_recovers_the_tilted_distribution(beta: float) -> None:
    found = minimized(lambda policy: expected_loss("sigmoid", policy, beta), REFERENCE)
    goal = tilted(REFERENCE, REWARD, beta)
    assert kl(goal, found).max() < 1e-8
    assert kl(goal, REFERENCE).min() > 1e-3, "the goal is somewhere else than the start"


def test_soft_labels_carry_what_many_hard_labels_would() -> None:
    x, a, b = all_pairs(X, Y)
    once = a < b
    x, a, b = x[once], a[once], b[once]
    soft = (REWARD[x, a] - REWARD[x, b]).sigmoid()

    def loss(policy: Tensor) -> Tensor:
        return pair_loss("sigmoid", pairs_of(policy, REFERENCE, x, a, b), 0.5, soft_B=soft).mean()

    assert kl(tilted(REFERENCE, REWARD, 0.5), minimized(loss, REFERENCE)).max() < 1e-8


def test_the_robust_loss_recovers_it_from_flipped_labels_where_the_plain_one_is_biased() -> None:
    beta, flip = 0.5, 0.2
    goal = tilted(REFERENCE, REWARD, beta)
    x, a, b = all_pairs(X, Y)
    heard = (1 - 2 * flip) * (REWARD[x, a] - REWARD[x, b]).sigmoid() + flip

    def plain(policy: Tensor) -> Tensor:
        return (heard * pair_loss("sigmoid", pairs_of(policy, REFERENCE, x, a, b), beta)).mean()

    robust = minimized(lambda policy: expected_loss("robust", policy, beta, flip), REFERENCE)
    assert kl(goal, robust).max() < 1e-8
    assert kl(goal, minimized(plain, REFERENCE)).max() > 0.05


def test_sampled_comparisons_come_closer_the_more_they_are() -> None:
    beta = 0.5
    goal = tilted(REFERENCE, REWARD, beta)
    distances = []
    for count in (300, 3_000, 30_000):
        x, won, lost = sampled_preferences(REFERENCE, REWARD, count, seed=2)

        def loss(policy: Tensor, x: Tensor = x, won: Tensor = won, lost: Tensor = lost) -> Tensor:
            return pair_loss("sigmoid", pairs_of(policy, REFERENCE, x, won, lost), beta).mean()

        distances.append(kl(goal, minimized(loss, REFERENCE)).mean().item())
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.01


def test_without_coverage_a_reply_that_nobody_compared_keeps_no_particular_probability() -> None:
    """The data say nothing about the last reply: the minimum is a whole valley, and where one ends up in it
    depends on where one started, which is why held-out prompts and the reference's own replies matter."""
    x, a, b = all_pairs(X, Y)
    compared = (a < Y - 1) & (b < Y - 1)
    x, a, b = x[compared], a[compared], b[compared]
    wins = (REWARD[x, a] - REWARD[x, b]).sigmoid()

    def loss(policy: Tensor) -> Tensor:
        return (wins * pair_loss("sigmoid", pairs_of(policy, REFERENCE, x, a, b), 0.5)).mean()

    pushed = REFERENCE + torch.tensor([0.0] * (Y - 1) + [3.0])
    found, other = minimized(loss, REFERENCE), minimized(loss, pushed)
    assert loss(found) - loss(other) == pytest.approx(0, abs=1e-10)
    assert (found - other)[:, -1].abs().min() > 0.5


def test_a_margin_asks_for_that_much_more_reward() -> None:
    """Two replies, one always preferred with margin m by a rater who errs in 1 − σ(0.5): β δ = 0.5 + m."""
    reference = torch.zeros(1, 2, dtype=torch.float64).log_softmax(-1)
    beta, margin = 0.5, torch.tensor([0.7], dtype=torch.float64)
    index = torch.tensor([0]), torch.tensor([0]), torch.tensor([1])
    soft = torch.tensor([0.5], dtype=torch.float64).sigmoid()

    def loss(policy: Tensor) -> Tensor:
        pairs = pairs_of(policy, reference, *index)
        return pair_loss("sigmoid", pairs, beta, margin_B=margin, soft_B=soft).mean()

    found = minimized(loss, reference)
    assert beta * (found[0, 0] - found[0, 1]).item() == pytest.approx(0.5 + 0.7)
