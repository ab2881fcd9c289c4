"""Losses of reward models: Bradley–Terry with margins and soft labels, ratings, and how an ensemble is read.

Shapes: P pairs, N replies, B elements of a batch (one preference, ranking or rating each), M members.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduce = Literal["mean", "worst", "uncertainty"]


def bradley_terry(
    difference_P: Tensor, margin_P: Tensor | None = None, soft_P: Tensor | None = None
) -> Tensor:
    """Per-pair negative log-likelihood `[P]` of "chosen beats rejected", in nats.

    `difference_P` is r(chosen) - r(rejected). Without margins this is -log σ(Δ), the maximum-likelihood
    Bradley–Terry model (Bradley and Terry 1952). A margin m ≥ 0 asks the difference to exceed m
    (Llama 2, arXiv:2307.09288, eq. 2): -log σ(Δ - m). `soft_P` is the probability that the chosen reply is
    the better one; the two orders are then weighted with it, each with its own margin.
    """
    margin_P = torch.zeros_like(difference_P) if margin_P is None else margin_P
    right_P = -functional.logsigmoid(difference_P - margin_P)
    if soft_P is None:
        return right_P
    wrong_P = -functional.logsigmoid(-difference_P - margin_P)
    return soft_P * right_P + (1 - soft_P) * wrong_P


def per_element(loss_P: Tensor, element_P: Tensor, elements: int) -> Tensor:
    """Mean loss of each element's pairs, `[B]`: a ranking of K replies counts once, not K(K-1)/2 times.

    This is the 1 / C(K, 2) of InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, eq. 1). An element
    without pairs has loss 0.
    """
    sums_B = loss_P.new_zeros(elements).index_add(0, element_P, loss_P)
    counts_B = loss_P.new_zeros(elements).index_add(0, element_P, torch.ones_like(loss_P))
    return sums_B / counts_B.clamp(min=1)


def label_loss(reward_N: Tensor, good_N: Tensor) -> Tensor:
    """Binary cross-entropy `[N]` of a pointwise label (1 good, 0 bad) with σ(reward) as its probability."""
    return functional.binary_cross_entropy_with_logits(reward_N, good_N, reduction="none")


def score_loss(reward_N: Tensor, target_N: Tensor) -> Tensor:
    """Half the squared error `[N]` to a pointwise score, which the caller has standardised."""
    return 0.5 * (reward_N - target_N).square()


def centering(reward_N: Tensor) -> Tensor:
    """Half the squared reward `[N]`: a small multiple pins the shift that Bradley–Terry leaves free."""
    return 0.5 * reward_N.square()


def combine(rewards_MN: Tensor, reduce: Reduce, coefficient: float = 1.0) -> Tensor:
    """An ensemble's reward `[N]` from its members' (Coste et al. 2023, arXiv:2310.02743).

    `mean`; `worst`, the least member's; `uncertainty`, the mean less `coefficient` times the members'
    variance (over M, not M - 1).
    """
    if reduce == "worst":
        return rewards_MN.amin(dim=0)
    mean_N = rewards_MN.mean(dim=0)
    if reduce == "mean":
        return mean_N
    return mean_N - coefficient * rewards_MN.var(dim=0, unbiased=False)


def margin_optimum(probability_P: Tensor, margin_P: Tensor) -> Tensor:
    """The difference Δ `[P]` at which `bradley_terry` with this margin is least, in closed form.

    For P(chosen wins) = p and margin m, with M = e^m, the stationary point x = e^Δ solves
    (1 - p) x² + (1 - 2p) M x - p = 0. At m = 0 this is log p / (1 - p), the Bradley–Terry difference; a
    margin pushes differences outwards, so probabilities read off a reward with margins are too sure until
    a temperature is fitted.
    """
    p, scale = probability_P, margin_P.exp()
    middle = (2 * p - 1) * scale
    root = (middle.square() + 4 * p * (1 - p)).sqrt()
    return torch.log((middle + root) / (2 * (1 - p)))
