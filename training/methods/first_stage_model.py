"""A tiny reader of tokens whose scores only grow with the text: the first stage of a cascade.

For token embeddings e_t (word and case), with all windows inside the text and none beyond its ends,

    u_t = relu(A [e_t … e_{t+2}] + a)        three tokens
    v_t = relu(B [u_t … u_{t+6}] + b)        nine tokens
    z_h = log Σ_t exp(w_h · v_t + c_h)

Every place in a text may have a head's label, and the text has it as soon as one place does: text that is
added before or after can raise a score and never lower it, so nothing is hidden by what stands around it.
What makes words harmless must stand within nine tokens of them.

Convolutions over time are Kim's (2014); the smooth maximum over places is that of multiple-instance learning.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CASE_TYPES = 3
NEAR, FAR = 3, 7
REACH = NEAR + FAR - 1
"""Tokens that the wider windows see; shorter texts are left to the encoder."""


class FirstStage(nn.Module):
    """V words, D numbers a word, U and W channels, H heads."""

    def __init__(self, words_VD: Tensor, near: int, far: int, heads: int) -> None:
        super().__init__()
        size = words_VD.shape[1]
        self.words = nn.Embedding.from_pretrained(words_VD, freeze=False)  # type: ignore[no-untyped-call]
        self.cases = nn.Embedding(CASE_TYPES, size)
        nn.init.zeros_(self.cases.weight)
        self.near = nn.Linear(NEAR * size, near)
        self.far = nn.Linear(FAR * near, far)
        self.head = nn.Linear(far, heads)
        nn.init.constant_(self.head.bias, -7.0)

    def forward(self, ids_BT: Tensor, types_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits `[B, H]`; T at least REACH, and so is every length."""
        e_BTD = self.words(ids_BT) + self.cases(types_BT)
        near_BTU = F.relu(self.near(_windows(e_BTD, NEAR)))
        far_BTW = F.relu(self.far(_windows(near_BTU, FAR)))
        outside_BT = torch.arange(far_BTW.shape[1])[None] >= (lengths_B - REACH + 1)[:, None]
        places_BTH = self.head(far_BTW).masked_fill(outside_BT[..., None], float("-inf"))
        return torch.logsumexp(places_BTH, dim=1)


def _windows(x_BTD: Tensor, width: int) -> Tensor:
    """`[B, T - width + 1, width D]`: every run of `width` positions, joined."""
    steps = x_BTD.shape[1] - width + 1
    return torch.cat([x_BTD[:, i : i + steps] for i in range(width)], dim=-1)


def projected(words_VE: Tensor, size: int) -> Tensor:
    """Word vectors reduced to their `size` directions of most variance, scaled to a variance of about 1."""
    centred = words_VE - words_VE.mean(dim=0)
    _, _, directions = torch.pca_lowrank(centred, q=size, center=False, niter=4)
    reduced = centred @ directions
    return reduced / reduced.std()
