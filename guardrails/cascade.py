"""A cheap first stage before an encoder: where it is sure that nothing is there, the encoder isn't run.

The first stage is a checkpoint of its own, `<encoder>-first`, whose parent is the encoder that it was
distilled from: with any other it isn't used. Guards say with each text what they need to know of it
(`Excerpt.heads`), in labels and entity types; without that, the encoder answers. All guards of a policy's
stage that read one model ask for the same, so that they go on sharing one pass.

Light: what loads numpy is imported where a worker makes the servable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from guardrails.classifier import Output
from guardrails.in_context import Describing, Excerpt

ABOUT_NAME = "first_stage.json"
SUFFIX = "-first"


@dataclass(frozen=True, slots=True)
class About:
    """`first_stage.json`.

    heads:  the outputs' names: the encoder's labels, then its entity types.
    labels: those of them that are labels.
    sure:   per head the logit below which the encoder is not asked.
    floors: per head the encoder's score that `sure` was chosen for; a guard with a lower threshold can't
        use the first stage.
    reach:  tokens that a text needs.
    """

    heads: tuple[str, ...]
    labels: tuple[str, ...]
    sure: Mapping[str, float]
    floors: Mapping[str, float]
    reach: int

    def __post_init__(self) -> None:
        known = set(self.heads)
        if self.sure.keys() != known or self.floors.keys() != known or not set(self.labels) <= known:
            raise ValueError("'sure', 'floors' and 'labels' don't fit 'heads'")


def read_about(folder: Path) -> About:
    """Raises OSError, ValueError, KeyError for a file that isn't there or isn't one."""
    content = json.loads((folder / ABOUT_NAME).read_bytes())
    return About(
        tuple(map(str, content["heads"])),
        tuple(map(str, content["labels"])),
        {str(head): float(at) for head, at in content["sure"].items()},
        {str(head): float(at) for head, at in content["floors"].items()},
        int(content["reach"]),
    )


class First(Protocol):
    """`guardrails.first_stage.FirstStage`."""

    def answer(self, text: str, heads: Sequence[str]) -> Output | None:
        """Its scores where it is sure, else None."""
        ...


class Cascade:
    """A servable for `Excerpt`s: the first stage's answer where it is sure, else the encoder's alone."""

    def __init__(self, first: First, encoder: Describing) -> None:
        self._first = first
        self._encoder = encoder

    def predict(self, batch: list[Excerpt]) -> list[Output]:
        answers = [self._first.answer(excerpt.text, excerpt.heads) for excerpt in batch]
        unsure = [excerpt for excerpt, output in zip(batch, answers, strict=True) if output is None]
        told = iter(self._encoder.predict(unsure) if unsure else ())
        return [replace(next(told), stage="encoder") if output is None else output for output in answers]

    def describe(self) -> Any:
        return self._encoder.describe()
