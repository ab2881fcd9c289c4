"""Drawing tokens, and the log-probabilities of what was drawn.

The policy that the methods optimise is the model at a temperature, π_T = softmax(logits / T), and `logprobs`
are always its own, over the whole vocabulary: the sampler and every later pass divide by the same T.
Truncation (top-k; nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751) draws from another distribution
than π_T, so PPO and TRPO refuse it; it is for looking at replies and for methods that train on them as data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from training.config import Config


class SampleConfig(Config):
    """How replies are drawn. `temperature: 0` takes the likeliest token; log-probabilities are those at 1.

    `rows` are decoded at a time; what is drawn doesn't depend on it.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    rows: int = Field(default=128, ge=1)

    @property
    def truncated(self) -> bool:
        """Whether the distribution drawn from isn't the whole policy's."""
        return self.temperature == 0 or self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True, slots=True)
class Draw:
    """One token a row: its id [B], and log π_T of it [B] in float32."""

    tokens_B: Tensor
    logprobs_B: Tensor


def draw(logits_BV: Tensor, uniforms_B: Tensor, config: SampleConfig) -> Draw:
    """Draw by inverting the cumulative distribution at `uniforms_B` in [0, 1), float64.

    One uniform number decides a token, so that a row's reply depends on its own numbers alone, however the
    rows are batched. The sums run in float64: in float32 the tail of a large vocabulary would be lost.
    """
    scaled_BV = logits_BV.float()
    if config.temperature not in (0, 1):
        scaled_BV = scaled_BV / config.temperature
    weights_BV = (scaled_BV - scaled_BV.amax(dim=-1, keepdim=True)).exp_()
    if config.temperature == 0:
        tokens_B = scaled_BV.argmax(dim=-1)
        total_B = weights_BV.sum(dim=-1, dtype=torch.float64)
    else:
        total_B, tokens_B = _invert(weights_BV, uniforms_B, config)
    picked_B = (scaled_BV.gather(1, tokens_B[:, None]) - scaled_BV.amax(dim=-1, keepdim=True)).squeeze(1)
    return Draw(tokens_B, picked_B - total_B.log().float())


def _invert(weights_BV: Tensor, uniforms_B: Tensor, config: SampleConfig) -> tuple[Tensor, Tensor]:
    """(sum of all weights [B], tokens drawn among the kept ones [B])."""
    cumulative_BV = weights_BV.cumsum(dim=-1, dtype=torch.float64)
    total_B = cumulative_BV[:, -1].clone()
    if config.truncated:
        cumulative_BV = (weights_BV * kept(weights_BV, config)).cumsum(dim=-1, dtype=torch.float64)
    # u < 1, but u · sum may round up to the sum: the last token of positive weight is the limit.
    threshold_B1 = (uniforms_B * cumulative_BV[:, -1]).unsqueeze(1)
    tokens_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True)
    last_B1 = torch.searchsorted(cumulative_BV, cumulative_BV[:, -1:].contiguous())
    return total_B, torch.minimum(tokens_B1, last_B1).squeeze(1)


def kept(weights_BV: Tensor, config: SampleConfig) -> Tensor:
    """Which tokens top-k and then top-p leave, bool [B, V]; always the likeliest one."""
    vocabulary = weights_BV.shape[-1]
    ordered_BV, order_BV = weights_BV.sort(dim=-1, descending=True, stable=True)
    count = min(config.top_k, vocabulary) if config.top_k else vocabulary
    ordered_BV[:, count:] = 0
    before_BV = ordered_BV.cumsum(dim=-1, dtype=torch.float64) - ordered_BV
    chosen_BV = before_BV < config.top_p * ordered_BV.sum(dim=-1, keepdim=True, dtype=torch.float64)
    chosen_BV[:, count:] = False
    return torch.zeros_like(chosen_BV).scatter(1, order_BV, chosen_BV)
