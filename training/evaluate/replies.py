"""Replies on disk: JSON lines {"prompt": text or messages, "reply": text}, one a line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from training.data.formats import read_rows
from training.data.preferences import Prompt, as_prompt, prompt_as_json, write_rows
from training.errors import DataError, TrainingError


def write_replies(path: Path, prompts: Iterable[Prompt], replies: Iterable[str]) -> int:
    """Write them, whole or not at all; returns how many."""
    rows = zip(prompts, replies, strict=True)
    return write_rows(path, ({"prompt": prompt_as_json(prompt), "reply": reply} for prompt, reply in rows))


def read_replies(path: Path) -> dict[Prompt, list[str]]:
    """Every prompt with its replies, in the file's order; raises DataError with file and line."""
    found: dict[Prompt, list[str]] = {}
    for number, row in read_rows(path):
        try:
            prompt, reply = as_prompt(row["prompt"]), row["reply"]
        except (KeyError, TypeError, ValueError) as error:
            problem = f"missing column {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(path, number, problem) from error
        if not isinstance(reply, str):
            raise DataError(path, number, f"column 'reply' must be a string, found {type(reply).__name__}")
        found.setdefault(prompt, []).append(reply)
    return found


def paired(a: Path, b: Path) -> tuple[list[Prompt], list[str], list[str]]:
    """The prompts that both files answer, with each file's first reply. Raises TrainingError for none."""
    ours, theirs = read_replies(a), read_replies(b)
    both = [prompt for prompt in ours if prompt in theirs]
    if not both:
        raise TrainingError(f"{a} and {b} answer no prompt in common, so there is nothing to compare")
    return both, [ours[prompt][0] for prompt in both], [theirs[prompt][0] for prompt in both]
