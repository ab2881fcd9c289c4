"""The policy and its value function: a linear head on the policy's own trunk, or a separate trunk.

The shared trunk (Stiennon et al. 2020 keep them apart, Ouyang et al. 2022 as well; Schulman et al. 2017
share) costs one forward and one backward pass where two models cost two, and values of sampled tokens come
with the rollout. A separate value model cannot disturb the policy's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from training.rl.causal import CausalParts, evaluating, hidden_at
from training.rl.processes import ALONE, Processes
from training.rl.replies import ReplyBatch, length_buckets, reply_batch, reply_hidden, score_tokens
from training.rl.rollout import Readout, Rollouts

ValueKind = Literal["shared", "separate"]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of N reply tokens, [N] each, float32 with gradients."""

    logprobs_N: Tensor
    entropy_N: Tensor
    values_N: Tensor


class ActorCritic(nn.Module):
    """`policy` is the model that was given; what is trained beside it lies in `head` and `value_trunk`."""

    def __init__(self, policy: nn.Module, value: ValueKind) -> None:
        super().__init__()
        self.policy = policy
        self.parts = CausalParts(policy)
        self.value_trunk = deepcopy(self.parts.decoder) if value == "separate" else None
        self.head = nn.Linear(self.parts.width, 1).to(self.device)
        # Values begin at zero, so the first advantages are the rewards themselves and not a random head's.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def device(self) -> torch.device:
        return next(self.policy.parameters()).device

    @property
    def readout(self) -> Readout | None:
        """What turns a hidden state of the policy into a value; None where values have their own trunk."""
        return self._read if self.value_trunk is None else None

    def score(self, batch: ReplyBatch, temperature: float) -> TokenScores:
        """One pass with gradients over some rows."""
        hidden_ND = reply_hidden(self.parts, batch)
        logprobs_N, entropy_N = score_tokens(self.parts, hidden_ND, batch.targets_N, temperature)
        return TokenScores(logprobs_N, entropy_N, self._read(self._value_hidden(batch, hidden_ND)))

    def values(self, rollouts: Rollouts, token_budget: int, processes: Processes = ALONE) -> Tensor:
        """Values of all reply tokens by a pass of its own, [B, T], 0 beyond the replies; no gradient."""
        mask_BT = rollouts.mask_BT
        values_BT = torch.zeros(mask_BT.shape)
        with evaluating(self):
            for rows in length_buckets(rollouts, processes.share(range(len(rollouts))), token_budget):
                batch = reply_batch(rollouts, rows, self.device)
                found_N = self.read_values(batch).float().cpu()
                values_BT[rows] = scattered(found_N, mask_BT[rows])
        processes.add_up(values_BT)
        return values_BT

    def read_values(self, batch: ReplyBatch) -> Tensor:
        """Values of some rows' reply tokens, [N], with gradients."""
        return self._read(self._value_hidden(batch, None))

    def _value_hidden(self, batch: ReplyBatch, shared_ND: Tensor | None) -> Tensor:
        if self.value_trunk is None:
            return reply_hidden(self.parts, batch) if shared_ND is None else shared_ND
        return hidden_at(self.value_trunk, batch.ids_BT, batch.lengths_B, batch.positions_N)

    def _read(self, hidden_ND: Tensor) -> Tensor:
        return cast(Tensor, self.head(hidden_ND.float())).squeeze(-1)


def scattered(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Flat values, row after row, back at their places in [B, T]."""
    out_BT = torch.zeros(mask_BT.shape, dtype=values_N.dtype)
    out_BT[mask_BT] = values_N
    return out_BT


def gathered(values_BT: Tensor, mask_BT: Tensor, rows: Sequence[int]) -> Tensor:
    """The reply tokens' values of some rows, flat, in the order of `reply_batch`."""
    chosen = list(rows)
    return values_BT[chosen][mask_BT[chosen]]
