"""Advantages: GAE is its definition, rewards lie where they belong, KL estimators are what they claim."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.rl.advantages import explained_variance, gae, token_rewards, whiten
from training.rl.kl import KlConfig, kl_estimate


def naive_gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """The definition, for one reply: A_t = Σ_l (γλ)^l δ_{t+l}, nothing after the end."""
    length = len(rewards)
    following = torch.cat([values[1:], values.new_zeros(1)])
    delta = rewards + gamma * following - values
    return torch.stack(
        [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length)) for t in range(length)]  # type: ignore[misc]
    )


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    gamma=st.floats(0.5, 1.0),
    lam=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**20),
)
def test_gae_equals_its_definition_reply_by_reply(
    lengths: list[int], gamma: float, lam: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    # What lies beyond a reply is noise that must not be read.
    rewards, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        expected = naive_gae(rewards[row, :length], values[row, :length], gamma, lam)
        torch.testing.assert_close(advantages[row, :length], expected)
        torch.testing.assert_close(returns[row, :length], expected + values[row, :length])
        assert advantages[row, length:].eq(0).all()


def test_with_lambda_one_and_no_values_the_advantage_is_the_reward_still_to_come() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    advantages, _ = gae(rewards, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    assert advantages.tolist() == [[7.0, 6.0, 4.0]]


def test_the_score_lies_at_the_last_token_of_each_reply() -> None:
    lengths = torch.tensor([1, 3])
    rewards = token_rewards(torch.tensor([5.0, 7.0]), torch.tensor([[1.0, 0, 0], [1.0, 2, 3]]), lengths, 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[4.9, 0, 0], [-0.1, -0.2, 6.7]]))


def test_whitening_looks_at_real_tokens_only() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    values = torch.tensor([[1.0, 2.0, 999.0], [3.0, 4.0, 5.0]])
    white = whiten(values, mask)
    assert white[0, 2] == 0
    torch.testing.assert_close(white[mask].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(white[mask].std(correction=0), torch.tensor(1.0))
    unshifted = whiten(values, mask, shift=False)
    torch.testing.assert_close(unshifted[mask], values[mask] / values[mask].std(correction=0))
    assert whiten(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0]]


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns + 5, returns) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(3), returns) == pytest.approx(0.0)
    assert math.isnan(explained_variance(torch.zeros(3), torch.ones(3)))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_for_the_reverse_kl(estimator: str) -> None:
    """The expectation over all outcomes, exactly, for a policy far from its reference."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (
        torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2)
    )
    kl = (policy.exp() * (policy - reference)).sum()
    estimate = kl_estimate(policy, reference, estimator)  # type: ignore[arg-type]
    torch.testing.assert_close((policy.exp() * estimate).sum(), kl)
    if estimator == "k3":
        assert estimate.ge(0).all()


def test_k2_is_biased_but_its_gradient_is_the_kls() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(9, generator=generator, dtype=torch.float64) for _ in range(2))
    reference = other.log_softmax(0)
    logits.requires_grad_(True)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits)[0]

    policy = logits.log_softmax(0)
    kl = (policy.exp() * (policy - reference)).sum()
    mean_k2 = (policy.exp().detach() * kl_estimate(policy, reference, "k2")).sum()
    assert abs(float((mean_k2 - kl).detach())) > 0.04
    torch.testing.assert_close(
        gradient(mean_k2), gradient((logits.log_softmax(0).exp() * (logits.log_softmax(0) - reference)).sum())
    )


def test_the_coefficient_follows_the_kl_within_its_bounds() -> None:
    fixed, adaptive = KlConfig(coef=0.1), KlConfig(coef=0.1, target=6.0)
    assert fixed.adapted(0.1, 60.0) == 0.1
    assert adaptive.adapted(0.1, 6.0) == pytest.approx(0.1)
    assert adaptive.adapted(0.1, 6.6) == pytest.approx(0.1 * 1.01)
    assert adaptive.adapted(0.1, 600.0) == pytest.approx(0.1 * 1.02)
    assert adaptive.adapted(0.1, 0.0) == pytest.approx(0.1 * 0.98)
    with pytest.raises(ValueError, match="cannot be adapted"):
        KlConfig(coef=0.0, target=1.0)
