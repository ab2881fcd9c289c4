"""Pairs that a tiny model can learn from in seconds: it should answer kindly, whatever it is asked."""

from __future__ import annotations

import random

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.training.tiny import tiny_model, tiny_prompts
from training.data.preferences import Preference, as_prompt
from training.models import LoraConfig, attach_lora

KIND = ("You are kind.", "Good night, sleep well.", "Hello there.", "Once there was a cat.")
UNKIND = ("No.", "I cannot do that.", "Who is it?", "No, no, no.")
WORDS = ("story", "cat", "name", "night", "two", "four", "Anna", "kind")


def kind_pairs(count: int, seed: int = 0, *, strength: float = 0.0) -> list[Preference]:
    """`count` pairs, each with a prompt of its own; the kind reply is chosen."""
    chance = random.Random(f"pairs/{seed}")
    return [
        Preference(
            as_prompt(f"Tell me {chance.choice(WORDS)} {chance.choice(WORDS)} {seed}{number}"),
            chance.choice(KIND),
            chance.choice(UNKIND),
            strength=strength,
        )
        for number in range(count)
    ]


def uneven_pairs() -> list[Preference]:
    """Eight pairs over prompts and replies of different lengths."""
    replies = [*KIND, *(f"{a} {b}" for a, b in zip(KIND, UNKIND, strict=True))]
    return [
        Preference(prompt, chosen, UNKIND[number % 4])
        for number, (prompt, chosen) in enumerate(zip(tiny_prompts(), replies, strict=True))
    ]


def adapted(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> PreTrainedModel:
    """The tiny model with a LoRA."""
    return attach_lora(tiny_model(tokenizer, seed), LoraConfig(rank=4), seed)
