"""PPO with a KL penalty against the known optimum.

A bandit of X prompts and Y one-token replies: the policy is a table of logits, and the highest value of
E[r] - β KL(π ‖ π_ref) over all policies is β log Z, Z = Σ π_ref exp(r/β), reached by the tilted reference.
PPO's own functions are trained on *sampled* replies, as in the method.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.proofs.discrete import kl, random_table, tilted
from training.losses.policy_gradient import clipped_policy_loss, token_logprobs
from training.rl.advantages import gae, token_rewards, whiten
from training.rl.kl import kl_estimate

X, Y, DRAWS = 4, 8, 512


def objective(policy_XY: Tensor, reward_XY: Tensor, reference_XY: Tensor, beta: float) -> float:
    """E[r] - β KL, averaged over prompts, exactly."""
    return float(((policy_XY.exp() * reward_XY).sum(-1) - beta * kl(policy_XY, reference_XY)).mean())


def ppo(reward_XY: Tensor, reference_XY: Tensor, beta: float, seed: int, steps: int = 60) -> Tensor:
    """Log-probabilities [X, Y] after `steps` of PPO: sample, score, weigh, four epochs of clipped loss."""
    generator = torch.Generator().manual_seed(seed)
    logits_XY = reference_XY.clone().requires_grad_(True)
    values_X = torch.zeros(X, dtype=torch.float64)
    optimizer = torch.optim.Adam([logits_XY], lr=0.05)
    mask_B1 = torch.ones(DRAWS, 1, dtype=torch.bool)
    for _ in range(steps):
        x_B = torch.randint(X, (DRAWS,), generator=generator)
        old_XY = logits_XY.detach().log_softmax(-1)
        y_B = torch.multinomial(old_XY[x_B].exp(), 1, generator=generator).squeeze(1)
        old_B = old_XY[x_B, y_B]
        kl_B1 = kl_estimate(old_B, reference_XY[x_B, y_B], "k1")[:, None]
        rewards_B1 = token_rewards(reward_XY[x_B, y_B], kl_B1, torch.ones_like(y_B), beta)
        advantages_B1, returns_B1 = gae(rewards_B1, values_X[x_B][:, None], mask_B1, 1.0, 0.95)
        for x in range(X):
            values_X[x] = returns_B1[x_B == x].mean()
        advantages_B = whiten(advantages_B1, mask_B1).squeeze(1)
        for _ in range(4):
            logprobs_B, _ = token_logprobs(logits_XY[x_B], y_B)
            loss = clipped_policy_loss(logprobs_B, old_B.float(), advantages_B.float(), 0.2).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return logits_XY.detach().log_softmax(-1)


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_reaches_nine_tenths_of_the_optimum(beta: float, seed: int) -> None:
    reference_XY = random_table(X, Y, seed).log_softmax(-1)
    reward_XY = random_table(X, Y, seed + 100)
    best = float((beta * (reference_XY + reward_XY / beta).logsumexp(-1)).mean())
    optimum_XY = tilted(reference_XY, reward_XY, beta)
    assert objective(optimum_XY, reward_XY, reference_XY, beta) == pytest.approx(best)
    # Measured from where it starts, or an objective could be "reached" by a lucky reference.
    start = objective(reference_XY, reward_XY, reference_XY, beta)
    found = objective(ppo(reward_XY, reference_XY, beta, seed), reward_XY, reference_XY, beta)
    assert found <= best + 1e-9
    assert (found - start) / (best - start) >= 0.9
    assert found >= 0.9 * best
