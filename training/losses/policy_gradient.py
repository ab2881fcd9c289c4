"""Losses of PPO over the N reply tokens of a batch, flat: there is no padding to mask.

Every function returns per-token terms, so that the caller divides by the tokens of the whole minibatch and
micro-batches add up to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def token_logprobs(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """(log p(target), entropy of p), both [N] in float32 and nats, both differentiable.

    What autograd would keep of a softmax over a whole vocabulary (the logits, their log-softmax, its
    exponential, the product of the two) is most of the memory of an update; this keeps one matrix, and its
    gradient g_lp (1_target - p) - g_H p (log p + H) is written over it.
    """
    found: tuple[Tensor, Tensor] = _TokenLogprobs.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
    return found


class _TokenLogprobs(Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        logp_NV = logits_NV.float().log_softmax(dim=-1)
        # A token that was ruled out has p log p = 0, not 0 · -inf.
        entropy_N = -(logp_NV.exp() * logp_NV).nan_to_num_(0.0).sum(dim=-1)
        ctx.save_for_backward(logp_NV, targets_N, entropy_N)
        ctx.dtype = logits_NV.dtype
        return logp_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor, None]:
        logp_NV, targets_N, entropy_N = ctx.saved_tensors
        gradient_NV = logp_NV.exp()
        if bool(grad_entropy_N.any()):
            inner_NV = logp_NV + entropy_N[:, None]
            inner_NV.mul_(grad_entropy_N[:, None]).add_(grad_logprobs_N[:, None])
            gradient_NV.mul_(inner_NV).nan_to_num_(0.0).neg_()
        else:
            gradient_NV.mul_(-grad_logprobs_N[:, None])
        gradient_NV.scatter_add_(1, targets_N[:, None], grad_logprobs_N[:, None])
        return gradient_NV.to(ctx.dtype), None


def clipped_policy_loss(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, clip: float
) -> Tensor:
    """-min(ρ A, clip(ρ, 1 - c, 1 + c) A) with ρ = π/π_old (Schulman et al. 2017, arXiv:1707.06347, eq. 7)."""
    ratio_N = (logprobs_N - old_logprobs_N).exp()
    return torch.max(-advantages_N * ratio_N, -advantages_N * ratio_N.clamp(1 - clip, 1 + clip))


def clipped_value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float | None
) -> Tensor:
    """½ max((V - R)², (clip(V, V_old ± c) - R)²); without a clip ½ (V - R)².

    The clip is of PPO's reference implementation, not of its paper.
    """
    loss_N = (values_N - returns_N).square()
    if clip is not None:
        near_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
        loss_N = torch.max(loss_N, (near_N - returns_N).square())
    return 0.5 * loss_N
