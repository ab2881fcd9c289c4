"""A tokenizer, a chat model of a few thousand weights and prompts: what tests of training start from."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from training.chat_model import ModelConfig, SamplingConfig, new_model, write_model
from training.data.conversation import Message
from training.data.tokenizer import train_tokenizer

VOCABULARY, CONTEXT = 320, 128
WORDS = (
    "Hello there, who is it? Good night, sleep well. What is two and two? It is four. My name is Anna.",
    "Say something kind. You are kind. Tell me a story, please. Once there was a cat. No, I cannot do that.",
)


@cache
def _learnt_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(WORDS, VOCABULARY, CONTEXT)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The project's kind of tokenizer, of 320 tokens; learnt once, a copy of one's own at every call."""
    return deepcopy(_learnt_tokenizer())


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    layers: int = 2,
    width: int = 32,
    context: int = CONTEXT,
) -> LlamaForCausalLM:
    """A Llama of random float32 weights, the same for the same arguments; no dropout."""
    shape = ModelConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=width // 2,
        max_position_embeddings=context,
    )
    return new_model(shape, tokenizer, seed)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def system(text: str) -> Message:
    return Message("system", text)


def tiny_prompts() -> list[tuple[Message, ...]]:
    """Eight prompts of different lengths, some with a system message or earlier turns."""
    return [
        (user("Hello!"),),
        (user("What is two and two?"),),
        (user("Tell me a story, please."),),
        (user("Good night."),),
        (system("Be kind."), user("Who is it?")),
        (user("My name is Anna."), assistant("Hello, Anna."), user("What is my name?")),
        (system("You are kind."), user("Say something."), assistant("You are kind."), user("Again.")),
        (user("No."),),
    ]


def write_tiny(place: Path, seed: int = 0, layers: int = 2, width: int = 32) -> Path:
    """The tiny model as a folder in bfloat16, as `ModelSource(path=…)` takes it."""
    tokenizer = tiny_tokenizer()
    write_model(place, tiny_model(tokenizer, seed, layers, width), tokenizer, SamplingConfig())
    return place
