"""How well a model predicts held-out conversations: perplexity, and bits a byte.

    nats_per_token = - Σ log p(x_t | x_<t) / tokens      perplexity = exp of it
    bits_per_byte  = the same sum / ln 2 / UTF-8 bytes of the texts that it is over

over the assistant's words, or over everything where a conversation says so. Perplexity depends on how a
tokenizer cuts words; between models with different tokenizers compare bits a byte. Intervals are bootstraps
over conversations, of the ratio of sums.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from training.data.conversation import Conversation
from training.data.render import Example, render_within
from training.errors import TrainingError
from training.evaluate.report import Metric, weighted_bootstrap
from training.rl.causal import CausalParts, evaluating
from training.rl.replies import score_tokens


@dataclass(frozen=True, slots=True)
class PerplexityReport:
    """Per conversation: summed nats, predicted tokens, bytes of predicted text. `too_long` were left out."""

    rows: tuple[tuple[float, int, int], ...]
    too_long: int
    seed: int = 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """nats_per_token, perplexity and bits_per_byte, each with its interval."""
        nats, tokens, bytes_ = (
            np.asarray(column, dtype=np.float64) for column in zip(*self.rows, strict=True)
        )
        per_token = self._ratio("nats_per_token", nats, tokens, "mean negative log-likelihood")
        perplexity = per_token.model_copy(
            update={
                "name": "perplexity",
                "about": "exp(nats_per_token); the mean is over tokens",
                "rows": (),
                "weights": (),
                **{end: math.exp(getattr(per_token, end)) for end in ("value", "low", "high")},
            }
        )
        per_byte = self._ratio("bits_per_byte", nats / math.log(2), bytes_, "free of the tokenizer")
        return perplexity, per_token, per_byte

    def _ratio(self, name: str, sums: np.ndarray, counts: np.ndarray, about: str) -> Metric:
        rows = sums / counts
        means = weighted_bootstrap(rows[:, None], counts[:, None], self.seed)[:, 0]
        low, high = np.quantile(means, (0.025, 0.975))
        return Metric(
            name=name,
            value=float(sums.sum() / counts.sum()),
            low=float(low),
            high=float(high),
            n=len(rows),
            about=about,
            data=f"{int(counts.sum())} predicted tokens or bytes of {len(rows)} conversations",
            rows=tuple(rows.tolist()),
            weights=tuple(counts.tolist()),
        )


def perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    *,
    max_length: int | None = None,
    seed: int = 0,
) -> PerplexityReport:
    """Measure on each conversation by itself; those longer than `max_length` tokens lose their last turns.

    Raises TrainingError where no conversation has a token to predict.
    """
    parts = CausalParts(model)
    limit = max_length or parts.context or 1 << 20
    rows: list[tuple[float, int, int]] = []
    too_long = 0
    device = next(model.parameters()).device
    with evaluating(model):
        for conversation in conversations:
            example = render_within(conversation, tokenizer, limit)
            if example is None or not any(example.supervised[1:]):
                too_long += 1
                continue
            rows.append(_measure(parts, tokenizer, example, device))
    if not rows:
        raise TrainingError(
            f"none of {len(conversations)} conversations has a token to predict in {limit} tokens"
        )
    return PerplexityReport(tuple(rows), too_long, seed)


def conversations_digest(conversations: Sequence[Conversation]) -> str:
    """Hex SHA-256 of the conversations, in their order: rows are paired only where it is the same."""
    text = json.dumps([conversation.as_dicts() for conversation in conversations], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _measure(
    parts: CausalParts, tokenizer: PreTrainedTokenizerFast, example: Example, device: torch.device
) -> tuple[float, int, int]:
    ids_T = torch.tensor(example.ids, device=device)
    places_N = torch.tensor([i for i, learnt in enumerate(example.supervised) if learnt and i > 0])
    hidden_ND = parts.trunk(ids_T[None], None)[0][places_N.to(device) - 1]
    targets_N = ids_T[places_N.to(device)]
    logprobs_N, _ = score_tokens(parts, hidden_ND, targets_N, 1.0)
    text = str(tokenizer.decode(targets_N.tolist(), skip_special_tokens=True))
    return float(-logprobs_N.double().sum()), len(places_N), max(1, len(text.encode()))
