"""Next-token cross-entropy over the supervised positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def shifted_positions(supervised_BT: Tensor) -> Tensor:
    """Flat indices into [B, T] of the positions whose *next* token is supervised, shape [N]."""
    predicts_BT = torch.zeros_like(supervised_BT)
    predicts_BT[:, :-1] = supervised_BT[:, 1:]
    return predicts_BT.flatten().nonzero().squeeze(-1)


def next_token_loss(hidden_ND: Tensor, unembedding_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The *sum* of -log p(target) in nats, from the last hidden states of the N predicting positions.

    A sum, so that gradients of micro-batches add up to those of the whole batch once they are divided by
    the batch's number of supervised tokens. The softmax runs in float32.
    """
    logits_NV = functional.linear(hidden_ND, unembedding_VD).float()
    return functional.cross_entropy(logits_NV, targets_N, reduction="sum")
