"""Best-of-n moves at most log n − (n − 1)/n nats from the policy that it chooses from.

The formula is exact for continuous rewards and an upper bound for a finite set of replies (Beirami et al.
2024, arXiv:2401.01879). Here the distribution of the best is computed exactly, and also sampled.
"""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.proofs.discrete import best_of, kl, random_table

COUNTS = (1, 2, 4, 8, 16, 64)


def bound(n: int) -> float:
    return math.log(n) - (n - 1) / n


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("ties", [False, True])
def test_the_exact_kl_stays_under_the_bound(n: int, ties: bool) -> None:
    for seed in range(20):
        log_p = random_table(1, 12, seed, scale=2.0).log_softmax(-1)[0]
        reward = random_table(1, 12, seed + 100)[0]
        best = best_of(log_p, reward.round() if ties else reward, n)
        assert best.sum().item() == pytest.approx(1)
        assert kl(best.log(), log_p).item() <= bound(n) + 1e-12


def test_with_many_replies_of_equal_probability_the_bound_is_nearly_met() -> None:
    log_p = torch.zeros(2_000, dtype=torch.float64).log_softmax(-1)
    reward = torch.arange(2_000, dtype=torch.float64)
    for n in (2, 4, 16):
        assert kl(best_of(log_p, reward, n).log(), log_p).item() == pytest.approx(bound(n), abs=2e-2)


def test_few_replies_fall_well_short_of_the_bound() -> None:
    """Where one reply has most of the probability, log n − (n − 1)/n says far more than is true."""
    log_p = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64).log()
    best = best_of(log_p, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64), 16)
    assert kl(best.log(), log_p).item() < 0.11 < bound(16)


def test_sampling_the_best_comes_to_the_same_distribution_and_kl() -> None:
    n, draws = 4, 200_000
    log_p = random_table(1, 6, seed=7).log_softmax(-1)[0]
    reward = random_table(1, 6, seed=8)[0]
    exact = best_of(log_p, reward, n)
    generator = torch.Generator().manual_seed(9)
    samples = torch.multinomial(log_p.exp(), draws * n, replacement=True, generator=generator)
    replies = samples.view(draws, n)
    best = replies.gather(1, reward[replies].argmax(dim=1, keepdim=True)).squeeze(1)
    counted = torch.bincount(best, minlength=6).double() / draws
    error = (exact * (1 - exact) / draws).sqrt()
    assert ((counted - exact).abs() < 4 * error + 1e-9).all()
    estimate = (exact.log() - log_p)[best]
    standard_error = (estimate.std() / math.sqrt(draws)).item()
    assert estimate.mean().item() == pytest.approx(kl(exact.log(), log_p).item(), abs=4 * standard_error)
