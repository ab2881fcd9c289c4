"""Replies on disk: JSON lines {"prompt": text or messages, "reply": text}, one a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from training.data.preferences import Prompt, as_prompt, prompt_as_json, read_parsed, write_rows
from training.errors import TrainingError


def write_replies(path: Path, prompts: Iterable[Prompt], replies: Iterable[str]) -> int:
    """Write them, whole or not at all; returns how many."""
    rows = zip(prompts, replies, strict=True)
    return write_rows(path, ({"prompt": prompt_as_json(prompt), "reply": reply} for prompt, reply in rows))


def read_replies(path: Path) -> dict[Prompt, list[str]]:
    """Every prompt with its replies, in the file's order; raises DataError with file and line."""
    found: dict[Prompt, list[str]] = {}
    for prompt, reply in read_parsed(path, reply_of):
        found.setdefault(prompt, []).append(reply)
    return found


def paired(a: Path, b: Path) -> tuple[list[Prompt], list[str], list[str]]:
    """The prompts that both files answer, with each file's first reply. Raises TrainingError for none."""
    ours, theirs = read_replies(a), read_replies(b)
    both = [prompt for prompt in ours if prompt in theirs]
    if not both:
        raise TrainingError(f"{a} and {b} answer no prompt in common, so there is nothing to compare")
    return both, [ours[prompt][0] for prompt in both], [theirs[prompt][0] for prompt in both]


def reply_of(row: Mapping[str, Any]) -> tuple[Prompt, str]:
    """One line of such a file. Raises TypeError, KeyError."""
    reply = row["reply"]
    if not isinstance(reply, str):
        raise TypeError(f"column 'reply' must be a string, found {type(reply).__name__}")
    return as_prompt(row["prompt"]), reply
