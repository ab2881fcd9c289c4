"""From scores to advantages: rewards per token, generalised advantage estimation, whitening.

Tensors are [B, T] with the mask of the replies' tokens; what lies beyond a reply is 0 and stays 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(scores_B: Tensor, kl_BT: Tensor, lengths_B: Tensor, kl_coef: float) -> Tensor:
    """-β KL_t for each token, and the reply's score with its last token; float32 [B, T]."""
    rewards_BT = -kl_coef * kl_BT
    rewards_BT[torch.arange(len(scores_B)), lengths_B - 1] += scores_B
    return rewards_BT


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), Schulman et al. 2015 (arXiv:1506.02438), eq. 16.

        δ_t = r_t + γ V_{t+1} - V_t        A_t = δ_t + γ λ A_{t+1}        R_t = A_t + V_t

    `values_BT` is V of the state in which token t was chosen. A reply ends its episode, also one that was
    cut at the limit: nothing is worth anything after it.
    """
    mask = mask_BT.to(values_BT.dtype)
    values_BT = values_BT * mask
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B = next_advantage_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = (delta_B + gamma * lam * next_advantage_B) * mask[:, t]
        next_value_B = values_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
    return advantages_BT, advantages_BT + values_BT


def whiten(values_BT: Tensor, mask_BT: Tensor, *, shift: bool = True) -> Tensor:
    """Divide by the standard deviation over all tokens of all replies; with `shift`, subtract the mean first.

    Values that don't vary are left undivided.
    """
    kept_N = values_BT[mask_BT]
    mean = kept_N.mean()
    spread = kept_N.std(correction=0)
    scale = 1.0 if float(spread) < 1e-8 else spread
    white_BT = (values_BT - mean) / scale if shift else values_BT / scale
    return white_BT * mask_BT


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 is a perfect value function, 0 a constant one; nan where R is constant."""
    variance = returns_N.var(correction=0)
    if float(variance) == 0:
        return float("nan")
    return float(1 - (returns_N - values_N).var(correction=0) / variance)
