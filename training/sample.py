"""`keel-train sample`: a checkpoint's replies to a list of conversations, to be read by a person.

Prints every conversation with its reply, then distinct-n over the replies (Li et al. 2016): the number of
different n-grams of words divided by the number of all of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from training.chat_model import read_model, read_tokenizer
from training.data.formats import read_rows
from training.errors import DataError


def reply(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], limit: int
) -> str:
    """One sampled reply of at most `limit` tokens, with the checkpoint's own sampling defaults."""
    prompt: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    generate: Any = model.generate  # type: ignore[misc]  # its annotation of self fits no model
    output: Tensor = generate(**prompt, max_new_tokens=limit)
    return str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def distinct(texts: Sequence[str], n: int) -> float:
    """Different word n-grams over all word n-grams of all texts; 0 where there are none."""
    grams = [
        tuple(words[i : i + n])
        for words in (text.lower().split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def read_prompts(path: Path) -> list[list[dict[str, str]]]:
    """Conversations that end with a user turn: `{"turns": [user, assistant, …, user]}` a line."""
    prompts = []
    for number, row in read_rows(path):
        turns = row.get("turns")
        if not isinstance(turns, list) or len(turns) % 2 == 0 or not all(isinstance(t, str) for t in turns):
            raise DataError(path, number, "'turns' must be a list of strings that ends with the user's")
        prompts.append(
            [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]
        )
    return prompts


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="keel-train sample", description="Read what a checkpoint replies.")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/demo-chat"))
    parser.add_argument("--prompts", type=Path, default=Path(__file__).parent / "configs/demo-prompts.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=80)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    tokenizer = read_tokenizer(arguments.checkpoint)
    model = read_model(arguments.checkpoint)
    model.train(False)
    replies = []
    for number, messages in enumerate(read_prompts(arguments.prompts), start=1):
        replies.append(reply(model, tokenizer, messages, arguments.max_tokens))
        print(f"{number:2}. {' | '.join(m['content'] for m in messages)}\n    → {replies[-1]}")
    figures = {f"distinct_{n}": round(distinct(replies, n), 3) for n in (1, 2)}
    print(json.dumps({"replies": len(replies), **figures}))
    return 0
