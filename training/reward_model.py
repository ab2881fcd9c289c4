"""The reward model: K scores for a reply, normalised, and their weighted mix.

A backbone with K outputs, one per objective: a causal LM whose score
is read at the last token, as vLLM's `--runner pooling --convert classify` reads it, or a BERT encoder. Raw
scores r have no scale of their own, since Bradley–Terry fixes only differences. On reference samples their
mean μ and covariance C are measured once and kept beside the weights; then

    objective k   (r_k - μ_k) / √C_kk          mix   Σ w_k (r_k - μ_k)/√C_kk  /  √(wᵀ R w),   R = corr(C)

have mean 0 and standard deviation 1 on those samples, for any weights w, also ones chosen later.
A score depends on its prompt and reply alone: not on padding, nor on what else is in the batch.

On disk: what transformers writes (safetensors, config.json, tokenizer), and `reward.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from training.config import Config
from training.data.preferences import Prompt
from training.errors import TrainingError
from training.files import appearing
from training.reward_model_encoder import EncoderForReward
from training.reward_model_encoding import Encoded, Kind, encode, pad, padding_to_right

RewardFunction = Callable[[Sequence[Prompt], Sequence[str]], Tensor]
"""Scores `[N]` of N replies to their prompts. A `RewardModel` is one, so is an ensemble, so is a judge."""

ABOUT_NAME = "reward.json"

Store = Literal["fp32", "bf16", "fp16"]
"""How weights are written: fp16 has three bits of precision more than bf16, and the smaller range."""

_STORED: dict[Store, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class About(Config):
    """`reward.json`. `mean` `[K]` and `covariance` `[K, K]` are of the raw scores on `samples` replies."""

    kind: Kind
    objectives: tuple[str, ...] = Field(min_length=1)
    weights: dict[str, float]
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    samples: int = Field(ge=0)
    max_length: int = Field(ge=8)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        count = len(self.objectives)
        if len(set(self.objectives)) != count:
            raise ValueError(f"objectives repeat: {', '.join(self.objectives)}")
        if len(self.mean) != count or [len(row) for row in self.covariance] != [count] * count:
            raise ValueError(f"mean and covariance must be of {count} objectives")
        if any(self.covariance[k][k] <= 0 for k in range(count)):
            raise ValueError("every objective needs a positive variance")
        check_weights(self.weights, self.objectives)
        return self

    def mix(self, raw_NK: Tensor) -> Tensor:
        """Raw scores to the normalised mix, `[N]`."""
        weights_K = torch.tensor([self.weights.get(name, 0.0) for name in self.objectives])
        covariance_KK = torch.tensor(self.covariance, dtype=torch.float64)
        deviation_K = covariance_KK.diagonal().sqrt()
        scaled_K = weights_K.double() / deviation_K
        # Weights may point where the objectives, as correlated as they are, hardly vary at all.
        spread = (scaled_K @ covariance_KK @ scaled_K).clamp(min=1e-6).sqrt()
        return ((raw_NK.double() - torch.tensor(self.mean).double()) @ (scaled_K / spread)).float()

    def standardise(self, raw_NK: Tensor) -> Tensor:
        """Raw scores to normalised ones, `[N, K]`."""
        deviation_K = torch.tensor(self.covariance).diagonal().sqrt()
        return (raw_NK - torch.tensor(self.mean)) / deviation_K


def check_weights(weights: Mapping[str, float], objectives: Sequence[str]) -> None:
    """Raise ValueError for weights of unknown objectives, negative ones, or none above zero."""
    if unknown := sorted(set(weights) - set(objectives)):
        raise ValueError(f"weights of unknown objectives {unknown}; there are {', '.join(objectives)}")
    if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
        raise ValueError("weights must not be negative, and one must be above zero")


@dataclass(frozen=True, slots=True)
class RewardModel:
    """Backbone, tokenizer and normalisation. Calling it is `score`, so it is a `RewardFunction`.

    `store` is how `save` writes the weights; they are float32 here.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    about: About
    store: Store = "fp32"

    @property
    def objectives(self) -> tuple[str, ...]:
        return self.about.objectives

    @property
    def weights(self) -> dict[str, float]:
        return dict(self.about.weights)

    def weighted(self, weights: Mapping[str, float]) -> RewardModel:
        """The same model with another mix; raises TrainingError for weights that make none."""
        try:
            check_weights(weights, self.objectives)
        except ValueError as error:
            raise TrainingError(f"reward weights: {error}") from error
        return replace(self, about=self.about.model_copy(update={"weights": dict(weights)}))

    def score(self, prompts: Sequence[Prompt], replies: Sequence[str], batch_size: int = 32) -> Tensor:
        """The normalised mix, `[N]`, float32, without gradient."""
        return self.about.mix(self.raw(prompts, replies, batch_size))

    __call__ = score

    def score_objectives(
        self, prompts: Sequence[Prompt], replies: Sequence[str], batch_size: int = 32
    ) -> Tensor:
        """Each objective's normalised score, `[N, K]`."""
        return self.about.standardise(self.raw(prompts, replies, batch_size))

    def raw(self, prompts: Sequence[Prompt], replies: Sequence[str], batch_size: int = 32) -> Tensor:
        """The backbone's own outputs, `[N, K]`: what vLLM's `/classify` returns without an activation."""
        encoded = [
            encode(self.tokenizer, self.about.kind, prompt, reply, self.about.max_length)
            for prompt, reply in zip(prompts, replies, strict=True)
        ]
        return raw_scores(self.model, self.about.kind, encoded, pad_id(self.tokenizer), batch_size)

    def normalised(self, prompts: Sequence[Prompt], replies: Sequence[str]) -> RewardModel:
        """The same model, normalised anew on these reference samples (at least two that differ)."""
        raw_NK = self.raw(prompts, replies).double()
        if len(raw_NK) < 2 or bool((raw_NK.var(dim=0) <= 0).any()):
            raise TrainingError(
                "reference samples: an objective's scores do not vary on them, so it cannot be normalised; "
                "give more replies, of different quality"
            )
        covariance_KK = torch.cov(raw_NK.T, correction=0).reshape(2 * (raw_NK.shape[1],))
        about = self.about.model_copy(
            update={
                "mean": tuple(raw_NK.mean(dim=0).tolist()),
                "covariance": tuple(map(tuple, covariance_KK.tolist())),
                "samples": len(raw_NK),
            }
        )
        return replace(self, about=about)

    def save(self, place: Path) -> None:
        """Write the folder `place`, whole or not at all; an existing one is replaced."""
        with appearing(place) as partial:
            stored = {name: t.to(_STORED[self.store]) for name, t in self.model.state_dict().items()}
            self.model.save_pretrained(partial, state_dict=stored)
            self.tokenizer.save_pretrained(partial)
            (partial / ABOUT_NAME).write_text(self.about.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, place: Path) -> Self:
        """Read what `save` wrote; raises TrainingError for a folder that is no reward model."""
        try:
            about = About.model_validate_json((place / ABOUT_NAME).read_bytes())
        except OSError as error:
            raise TrainingError(
                f"{place}: no reward model here, {ABOUT_NAME} cannot be read ({error.strerror}); "
                "give the `final` folder of a `keel-train reward` run"
            ) from error
        except ValidationError as error:
            raise TrainingError(f"{place / ABOUT_NAME}: not a reward model's description: {error}") from error
        factory: Any = EncoderForReward if about.kind == "encoder" else AutoModelForSequenceClassification
        model = factory.from_pretrained(place, local_files_only=True, dtype=torch.float32)
        if model.config.num_labels != len(about.objectives):
            raise TrainingError(
                f"{place}: config.json has {model.config.num_labels} outputs, {ABOUT_NAME} names "
                f"{len(about.objectives)} objectives; they must agree"
            )
        tokenizer = AutoTokenizer.from_pretrained(place)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise TrainingError(f"{place}: its tokenizer is not a fast tokenizer, which encoding needs")
        return cls(model.eval(), tokenizer, about)


def rounded(model: PreTrainedModel, store: Store) -> PreTrainedModel:
    """The model, in float32, with weights that `store` can write without loss."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(_STORED[store]))
    return model


def pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    if tokenizer.pad_token_id is None:
        raise TrainingError("the tokenizer has no pad_token; give it one, other than its eos_token")
    return int(tokenizer.pad_token_id)


def forward(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None) -> Tensor:
    """Raw scores `[B, K]` in float32, of texts padded on either side (the mask is 1 on real tokens).

    `types_BT` are an encoder's segments. Padding is brought to the right first, so positions count real
    tokens. A causal model's score is then read at the last real token: transformers looks for the rightmost
    token that is not the pad token, and `encode` refuses texts that end with that.
    """
    segments_BT = torch.zeros_like(ids_BT) if types_BT is None else types_BT
    ids_BT, mask_BT, segments_BT = padding_to_right(ids_BT, mask_BT, segments_BT)
    extra = {} if types_BT is None else {"token_type_ids": segments_BT}
    logits: Tensor = model(input_ids=ids_BT, attention_mask=mask_BT, **extra).logits
    return logits.float()


@torch.no_grad()
def raw_scores(
    model: PreTrainedModel, kind: Kind, encoded: Sequence[Encoded], filler: int, batch_size: int = 32
) -> Tensor:
    """Raw scores `[N, K]`, in the order given; texts of like length share a batch."""
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    scores_NK = torch.zeros(len(encoded), int(model.config.num_labels or 1))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        ids_BT, mask_BT, types_BT = (t.to(model.device) for t in pad([encoded[row] for row in rows], filler))
        scores_NK[rows] = forward(model, ids_BT, mask_BT, types_BT if kind == "encoder" else None).cpu()
    model.train(training)
    return scores_NK


def unnormalised(
    kind: Kind, objectives: Sequence[str], weights: Mapping[str, float] | None, max_length: int
) -> About:
    """The description of a model that was not normalised yet: mean 0, unit covariance."""
    count = len(objectives)
    return About(
        kind=kind,
        objectives=tuple(objectives),
        weights=dict(weights) if weights else dict.fromkeys(objectives, 1.0),
        mean=(0.0,) * count,
        covariance=tuple(tuple(float(i == j) for j in range(count)) for i in range(count)),
        samples=0,
        max_length=max_length,
    )
