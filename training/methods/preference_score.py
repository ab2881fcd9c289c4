"""What a policy makes of held-out pairs: log-probabilities of replies, implicit rewards, and how often the
chosen reply gets the higher one.

DPO's implicit reward of a reply is β (log π − log π_ref). It can rank pairs better and better while *both*
log-probabilities fall, the chosen one's too (Pal et al. 2024, arXiv:2402.13228; Razin et al. 2024,
arXiv:2410.08847): probability then goes to replies that nobody has seen. That is measured here, and told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policies.manifest import Evaluation
from training.data.preference_render import Ids, PairRow
from training.evaluate.metrics import Figure, mean, share
from training.rl.causal import CausalParts, evaluating


@dataclass(frozen=True, slots=True)
class PairScores:
    """Log-probabilities of N pairs, in nats, summed over the tokens of each reply, [N] float32."""

    chosen_N: Tensor
    rejected_N: Tensor


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    """Held-out figures with 95 % intervals, rewards and log-probabilities in nats.

    `accuracy`: share of pairs whose chosen reply has the higher implicit reward; equal ones count as wrong.
    `margin`: mean difference of the two rewards.
    `chosen_change`, `rejected_change`: mean of log π − log π_ref, of what each has gained since the start.
    """

    accuracy: Figure
    margin: Figure
    chosen_change: Figure
    rejected_change: Figure

    def warnings(self) -> tuple[str, ...]:
        """What a reader of the figures must not overlook."""
        fall = -self.chosen_change.value
        if fall <= 0:
            return ()
        return (
            f"chosen log-probability fell by {fall:.2f} nats on held-out pairs (the rejected one's changed "
            f"by {self.rejected_change.value:+.2f}): probability went to replies outside the data; raise "
            "beta, train less, or add the sft loss",
        )

    def evaluations(self) -> tuple[Evaluation, ...]:
        """The figures for a run's record."""
        figures = {
            "preference_accuracy": self.accuracy,
            "reward_margin": self.margin,
            "chosen_logprob_change": self.chosen_change,
            "rejected_logprob_change": self.rejected_change,
        }
        return tuple(
            Evaluation(metric=name, value=f.value, low=f.low, high=f.high, data="held-out pairs", n=f.n)
            for name, f in figures.items()
        )


def score_pairs(model: nn.Module, rows: Sequence[PairRow], pad_id: int, batch_size: int = 16) -> PairScores:
    """Log-probabilities of both replies of every row, without gradient, dropout off."""
    chosen = reply_logprobs(model, [(row.prompt, row.chosen) for row in rows], pad_id, batch_size)
    rejected = reply_logprobs(model, [(row.prompt, row.rejected) for row in rows], pad_id, batch_size)
    return PairScores(chosen, rejected)


def reply_logprobs(
    model: nn.Module, replies: Sequence[tuple[Ids, Ids]], pad_id: int, batch_size: int = 16
) -> Tensor:
    """log π(reply | prompt) of each (prompt, reply), summed over its tokens, [N] float32 on the CPU.

    Padded on the right and masked by length; only the replies' positions are unembedded.
    """
    parts = CausalParts(model)
    device = next(model.parameters()).device
    sums: list[Tensor] = []
    with evaluating(model):
        for start in range(0, len(replies), batch_size):
            batch = replies[start : start + batch_size]
            longest = max(len(prompt) + len(reply) for prompt, reply in batch)
            ids_BT = torch.full((len(batch), longest), pad_id)
            reply_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
            mask_BT = torch.zeros_like(ids_BT)
            for b, (prompt, reply) in enumerate(batch):
                end = len(prompt) + len(reply)
                ids_BT[b, :end] = torch.tensor(prompt + reply)
                reply_BT[b, len(prompt) : end] = True
                mask_BT[b, :end] = 1
            ids_BT, reply_BT, mask_BT = (tensor.to(device) for tensor in (ids_BT, reply_BT, mask_BT))
            hidden_BTD = parts.trunk(ids_BT, mask_BT)[:, :-1]
            logprobs_NV = parts.unembed(hidden_BTD[reply_BT[:, 1:]]).float().log_softmax(-1)
            targets_N = ids_BT[:, 1:][reply_BT[:, 1:]]
            picked_N = logprobs_NV.gather(1, targets_N[:, None]).squeeze(1)
            row_N = reply_BT[:, 1:].nonzero()[:, 0]
            sums.append(torch.zeros(len(batch), device=device).index_add_(0, row_N, picked_N).cpu())
    return torch.cat(sums) if sums else torch.zeros(0)


def report_pairs(policy: PairScores, reference: PairScores, beta: float) -> PreferenceReport | None:
    """Figures over the pairs; None where there are none."""
    if not len(policy.chosen_N):
        return None
    chosen_N = policy.chosen_N - reference.chosen_N
    rejected_N = policy.rejected_N - reference.rejected_N
    return PreferenceReport(
        accuracy=share((chosen_N > rejected_N).tolist()),
        margin=mean((beta * (chosen_N - rejected_N)).tolist()),
        chosen_change=mean(chosen_N.tolist()),
        rejected_change=mean(rejected_N.tolist()),
    )
