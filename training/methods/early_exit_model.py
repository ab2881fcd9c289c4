"""An encoder's early exit: scores for every place of a text from its hidden states, and their smooth maximum.

For the hidden states h_t of a window after the encoder's lower layers, and their mean h̄,

    u_t = relu(A h_t + B h̄ + a)
    z_h = log Σ_t exp(w_h · u_t + c_h)

Every place may have a head's label, and the text has it as soon as one place does. A mean over places would
let harmless words around a passage hide it; here what stands around it counts only by what the lower layers,
and h̄, let a place know of its surroundings.

The smooth maximum is that of multiple-instance learning. Exits between layers are known from BranchyNet
(Teerapittayanon et al. 2016) and DeeBERT (Xin et al. 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EarlyExit(nn.Module):
    """D numbers a state, U channels, H heads."""

    def __init__(self, size: int, channels: int, heads: int) -> None:
        super().__init__()
        self.place = nn.Linear(size, channels)
        self.mean = nn.Linear(size, channels, bias=False)
        self.head = nn.Linear(channels, heads)
        nn.init.constant_(self.head.bias, -7.0)

    def forward(self, states_BTD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the texts `[B, H]` and of their places `[B, T, H]`; beyond a length minus infinity."""
        inside_BT = torch.arange(states_BTD.shape[1])[None] < lengths_B[:, None]
        mean_BD = (states_BTD * inside_BT[..., None]).sum(dim=1) / lengths_B[:, None]
        channels_BTU = F.relu(self.place(states_BTD) + self.mean(mean_BD)[:, None])
        places_BTH = self.head(channels_BTU).masked_fill(~inside_BT[..., None], float("-inf"))
        return torch.logsumexp(places_BTH, dim=1), places_BTH
