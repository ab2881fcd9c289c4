"""How well a model predicts conversations that it wasn't trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from policies.manifest import Evaluation
from training.data.render import Example


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """Mean negative log-likelihood in nats per supervised token, and each conversation's (sum, count)."""

    loss: float
    per_row: tuple[tuple[float, int], ...]

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def perplexity_interval(self, seed: int, resamples: int = 2000) -> tuple[float, float]:
        """The 95 % percentile-bootstrap interval, over conversations (Efron 1979)."""
        sums_R2 = torch.tensor(self.per_row, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        picks_SR = torch.randint(len(sums_R2), (resamples, len(sums_R2)), generator=generator)
        totals_S2 = sums_R2[picks_SR].sum(dim=1)
        losses_S = totals_S2[:, 0] / totals_S2[:, 1]
        low, high = losses_S.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).exp().tolist()
        return low, high

    def evaluation(self, seed: int) -> Evaluation:
        """The perplexity as the manifest has it."""
        low, high = self.perplexity_interval(seed)
        on = "supervised tokens of the held-out conversations"
        return Evaluation(
            metric="perplexity", value=self.perplexity, low=low, high=high, data=on, n=len(self.per_row)
        )


@torch.no_grad()
def score_held_out(model: PreTrainedModel, examples: Sequence[Example]) -> HeldOutScore:
    """Each example alone, without padding, dropout off."""
    training = model.training
    model.train(False)
    per_row: list[tuple[float, int]] = []
    for example in examples:
        ids_1T = torch.tensor([example.ids], device=model.device)
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
        losses_T = functional.cross_entropy(logits_TV, ids_1T[0, 1:], reduction="none")
        wanted_T = torch.tensor(example.supervised[1:], device=losses_T.device)
        per_row.append((losses_T[wanted_T].sum().item(), int(wanted_T.sum())))
    model.train(training)
    tokens = sum(count for _, count in per_row)
    return HeldOutScore(sum(total for total, _ in per_row) / max(tokens, 1), tuple(per_row))
