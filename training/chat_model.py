"""The chat model: a Llama-type model with its tokenizer, made anew, read from a folder or written to one."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from training.config import Config
from training.errors import TrainingError
from training.run_directory import load_parameters


class ModelConfig(Config):
    """A Llama-type model with tied embeddings, in transformers' names."""

    vocab_size: int = Field(gt=256)
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int


class SamplingConfig(Config):
    """Defaults for whoever serves the model, where a request says nothing else."""

    temperature: float = Field(default=0.7, gt=0)
    top_p: float = Field(default=0.9, gt=0, le=1)
    repetition_penalty: float = Field(default=1.1, ge=1)


def new_model(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A model with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    shape = LlamaConfig(
        **config.model_dump(),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(shape)  # type: ignore[no-untyped-call]


def read_model(place: Path) -> LlamaForCausalLM:
    """The model in folder `place`, in float32, with its sampling defaults."""
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(place))  # type: ignore[no-untyped-call]
    tensors = {name: tensor.float() for name, tensor in load_file(place / "model.safetensors").items()}
    load_parameters(model, tensors, place)
    if (place / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(place)
    return model


def read_tokenizer(place: Path, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer in folder `place`; raises TrainingError for one that would silently ruin training.

    `chat_template` stands in for the folder's own.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{place}: has no tokenizer that can be read: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TrainingError(f"{place}: its tokenizer is not a fast tokenizer, which rendering needs")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    check_tokenizer(tokenizer)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse what silently ruins training: no chat template, no EOS, padding that is the EOS."""
    if not tokenizer.chat_template:
        raise TrainingError("the tokenizer has no chat template; conversations can't be rendered")
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise TrainingError("the tokenizer needs an eos_token and a pad_token")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise TrainingError("pad_token is eos_token; give padding its own token, lest ends go unlearnt")


def write_model(
    place: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, sampling: SamplingConfig
) -> None:
    """The model directory that vLLM and transformers load, in bfloat16, with its sampling defaults."""
    tokenizer.save_pretrained(place)
    copy = LlamaForCausalLM(model.config)  # type: ignore[no-untyped-call]
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling.model_dump(),
    )
    copy.bfloat16().save_pretrained(place)
