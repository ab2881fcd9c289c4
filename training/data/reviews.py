"""What reviewers decided of withheld texts, as rows for the safety classifier.

JSON lines, as `keel feedback export --reviews` writes them: a piece of text in which a classifier found
something, and per label 0 where a person overturned that (the block was false), else 1.

    {"text", "labels": {label: 0 or 1}, ["prompt", "source", "stage", "decision", "id", "policy", "created"]}

`prompt` is what a reply answered; the classifier reads a reply together with it for `unsafe_reply`, and for
that alone. A kind of toxicity that was upheld is toxic; of what isn't toxic, no kind is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.data.preferences import read_parsed
from training.data.safety_example import IMPLIED, LABELS, Example
from training.data.safety_written import pair

SHOWN_PROMPT = 220
"""Characters of a prompt, the last, that the guard shows the classifier before a reply."""
_PAIRED = "unsafe_reply"
_COLUMNS = frozenset({"text", "labels", "prompt", "source", "stage", "decision", "id", "policy", "created"})


@dataclass(frozen=True, slots=True)
class Reviewed:
    """`unknown`: rows of labels that this classifier doesn't have."""

    examples: list[Example] = field(default_factory=list)
    unknown: int = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Labels that were upheld, and labels that were overturned."""
        values = [value for example in self.examples for value in example.labels.values()]
        return sum(value > 0.5 for value in values), sum(value <= 0.5 for value in values)


def read_reviews(paths: Iterable[Path]) -> Reviewed:
    """The rows of all files. Raises DataError with file and line for one that is wrong."""
    examples: list[Example] = []
    unknown = 0
    for path in paths:
        for found in read_parsed(path, _parse):
            examples += found
            unknown += not found
    return Reviewed(examples, unknown)


def _parse(row: Mapping[str, Any]) -> list[Example]:
    if wrong := sorted(row.keys() - _COLUMNS):
        raise ValueError(f"a review has no column {', '.join(map(repr, wrong))}")
    text, labels, prompt = row["text"], row["labels"], row.get("prompt") or ""
    if not isinstance(text, str) or not text.strip() or not isinstance(prompt, str):
        raise TypeError("columns 'text' and 'prompt' must be texts, and 'text' not empty")
    if not isinstance(labels, dict) or not labels or any(value not in (0, 1) for value in labels.values()):
        raise ValueError("column 'labels' must map labels to 0 (overturned) or 1 (upheld)")
    known = {name: float(value) for name, value in labels.items() if name in LABELS}
    alone = _closed({name: value for name, value in known.items() if name != _PAIRED})
    examples = [Example(text, alone, "review")] if alone else []
    if _PAIRED in known:
        examples.append(Example(pair(prompt[-SHOWN_PROMPT:], text), {_PAIRED: known[_PAIRED]}, "review"))
    return examples


def _closed(labels: dict[str, float]) -> dict[str, float]:
    """With what the labels imply of one another."""
    closed = dict(labels)
    for kind, whole in IMPLIED.items():
        if labels.get(kind) == 1.0:
            closed.setdefault(whole, 1.0)
        if labels.get(whole) == 0.0:
            closed.setdefault(kind, 0.0)
    return closed
