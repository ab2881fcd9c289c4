"""Tiny reward models and preferences whose rule is known: kind replies are better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tests.training import tiny_guard
from tests.training.tiny import tiny_model, tiny_tokenizer
from training.data.preferences import Preference, Prompt, as_prompt
from training.methods.reward import RewardConfig
from training.reward_model import RewardModel, unnormalised
from training.reward_model_encoder import EncoderForReward

KIND, RUDE = "You are kind. Hello there.", "No, I cannot do that."
PROMPTS: list[Prompt] = [as_prompt(t) for t in ("Hello there, who is it?", "Tell me a story, please.", "Hi")]
REPLIES = [KIND, RUDE, "It is four. " * 9]


def causal_backbone(objectives: tuple[str, ...] = ("overall",), seed: int = 0, width: int = 32) -> Any:
    """A two-layer Llama with an output per objective, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    shape = tiny_model(tokenizer, seed, width=width).config
    shape.id2label = dict(enumerate(objectives))
    shape.label2id = {name: index for index, name in enumerate(objectives)}
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(shape), tokenizer


def encoder_backbone(objectives: tuple[str, ...] = ("overall",), seed: int = 0) -> Any:
    """A two-layer BERT with an output per objective, and its tokenizer."""
    words = tiny_guard.tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )
    shape = tiny_guard.config(words.get_vocab_size())
    shape.max_position_embeddings = 128
    shape.pad_token_id = tokenizer.pad_token_id
    shape.id2label = dict(enumerate(objectives))
    torch.manual_seed(seed)
    return EncoderForReward(shape), tokenizer


def reward_model(
    kind: Any = "causal", objectives: tuple[str, ...] = ("overall",), width: int = 32
) -> RewardModel:
    """Normalised on three replies; its weights are large enough for scores that differ."""
    causal = kind == "causal"
    model, tokenizer = causal_backbone(objectives, width=width) if causal else encoder_backbone(objectives)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    about = unnormalised(kind, objectives, None, 96)
    return RewardModel(model.eval(), tokenizer, about).normalised(PROMPTS, REPLIES)


def kind_over_rude(count: int, objective: str = "overall") -> list[Preference]:
    return [Preference(as_prompt(f"Hello there, {i}"), KIND, RUDE, objective=objective) for i in range(count)]


def reward_config(path: Path | str = "unused", **changes: Any) -> RewardConfig:
    """Eight steps in seconds; `training` options are merged with the given ones."""
    training = {
        "steps": 8,
        "batch_size": 8,
        "micro_batch": 8,
        "learning_rate": 3e-3,
        "schedule": "constant",
        "max_length": 96,
        "log_every": 2,
        "checkpoint_every": 4,
    } | changes.pop("training", {})
    source = {"path": str(path), "origin": "made by a test", "licence": "MIT"} | changes.pop("model", {})
    return RewardConfig.model_validate({"model": source, "training": training} | changes)
