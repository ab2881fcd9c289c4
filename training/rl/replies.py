"""Passing whole texts (prompt and reply) through a model, to read something at the replies' tokens.

Rows of like length go together, padded on the right: no real token of a causal model sees what comes after.
Llama-type models compute nothing for padding at all (`training.rl.ragged`). Logits are computed only at the
positions that predict a reply's token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.losses.policy_gradient import token_logprobs
from training.rl.causal import CausalParts, evaluating, hidden_at
from training.rl.processes import ALONE, Processes
from training.rl.rollout import Rollouts

# Logits of so many tokens at a time where no gradient is needed.
_LOGIT_ROWS = 1024


@dataclass(frozen=True, slots=True)
class ReplyBatch:
    """Some rows' texts [B, T] and their lengths, and for each of their N reply tokens, row after row: where
    its prediction is read (flat index into [B, T]), and which token it is."""

    ids_BT: Tensor
    lengths_B: Tensor
    positions_N: Tensor
    targets_N: Tensor


def reply_batch(rollouts: Rollouts, rows: Sequence[int], device: torch.device) -> ReplyBatch:
    """Rows `rows` of the rollouts, in that order."""
    lengths = rollouts.lengths_B.tolist()
    sizes = [len(rollouts.prompt_ids[row]) + lengths[row] for row in rows]
    width = max(sizes)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    positions = []
    for place, row in enumerate(rows):
        start, length = len(rollouts.prompt_ids[row]), lengths[row]
        ids_BT[place, :start] = torch.tensor(rollouts.prompt_ids[row])
        ids_BT[place, start : start + length] = rollouts.reply_ids_BT[row, :length]
        positions.append(torch.arange(start - 1, start - 1 + length) + place * width)
    positions_N = torch.cat(positions)
    targets_N = ids_BT.flatten()[positions_N + 1]
    found = (ids_BT, torch.tensor(sizes), positions_N, targets_N)
    return ReplyBatch(*(tensor.to(device) for tensor in found))


def length_buckets(rollouts: Rollouts, rows: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cut `rows` into groups of like length, each at most `token_budget` tokens with its padding.

    A row that is longer than the budget is a group of its own.
    """
    lengths = rollouts.lengths_B.tolist()
    size = {row: len(rollouts.prompt_ids[row]) + lengths[row] for row in rows}
    groups: list[list[int]] = []
    for row in sorted(rows, key=size.__getitem__):
        if groups and (len(groups[-1]) + 1) * size[row] <= token_budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def reply_hidden(parts: CausalParts, batch: ReplyBatch) -> Tensor:
    """Hidden states that predict the reply tokens, [N, D]."""
    return hidden_at(parts.decoder, batch.ids_BT, batch.lengths_B, batch.positions_N)


def score_tokens(
    parts: CausalParts, hidden_ND: Tensor, targets_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(log π_T of the targets, entropy of π_T), [N] each."""
    logits_NV = parts.unembed(hidden_ND)
    return token_logprobs(logits_NV if temperature == 1 else logits_NV / temperature, targets_N)


def reply_logprobs(
    model: nn.Module,
    rollouts: Rollouts,
    temperature: float,
    token_budget: int = 4096,
    processes: Processes = ALONE,
) -> Tensor:
    """log π_T of every reply token under `model`, [B, T] float32, 0 beyond the replies; no gradient."""
    parts = CausalParts(model)
    device = next(model.parameters()).device
    mask_BT = rollouts.mask_BT
    logprobs_BT = torch.zeros(mask_BT.shape)
    with evaluating(model):
        for rows in length_buckets(rollouts, processes.share(range(len(rollouts))), token_budget):
            batch = reply_batch(rollouts, rows, device)
            hidden_ND = reply_hidden(parts, batch)
            found = []
            for start in range(0, len(hidden_ND), _LOGIT_ROWS):
                piece = slice(start, start + _LOGIT_ROWS)
                targets_N = batch.targets_N[piece]
                found.append(score_tokens(parts, hidden_ND[piece], targets_N, temperature)[0].cpu())
            scattered_BT = torch.zeros(len(rows), mask_BT.shape[1])
            scattered_BT[mask_BT[rows]] = torch.cat(found)
            logprobs_BT[rows] = scattered_BT
    processes.add_up(logprobs_BT)
    return logprobs_BT
