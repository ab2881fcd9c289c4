"""An early exit from an encoder: where its lower layers leave no doubt, the upper ones aren't run.

The exit is a checkpoint of its own, `<encoder>-exit`, whose parent is the encoder that it was distilled from:
with any other it isn't used. Guards say with each text what they need to know of it (`Excerpt.heads`), in
labels and entity types; without that, the whole encoder answers. All guards of a policy's stage that read one
model ask for the same, so that they go on sharing one pass.

Light: what loads numpy is imported where a worker makes the servable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from guardrails.classifier import Output
from guardrails.in_context import Excerpt, InContext

if TYPE_CHECKING:
    from guardrails.classifier_onnx import Begun

ABOUT_NAME = "exit.json"
SUFFIX = "-exit"


@dataclass(frozen=True, slots=True)
class About:
    """`exit.json`.

    at:     the tensor of the encoder's graph from which the exit reads.
    heads:  the outputs' names: the encoder's labels, then its entity types.
    labels: those of them that are labels.
    sure:   per head the logit below which the rest of the encoder is not run.
    floors: per head the encoder's score that `sure` was chosen for; a guard with a lower threshold can't
        use the exit.
    reach:  tokens that a text needs.
    """

    at: str
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
        str(content["at"]),
        tuple(map(str, content["heads"])),
        tuple(map(str, content["labels"])),
        {str(head): float(at) for head, at in content["sure"].items()},
        {str(head): float(at) for head, at in content["floors"].items()},
        int(content["reach"]),
    )


class Exit(Protocol):
    """`guardrails.early_exit.EarlyExit`."""

    def answer(self, begun: Begun, heads: Sequence[str]) -> Output | None:
        """Its scores where it is sure, else None."""
        ...


class Halves(Protocol):
    """`guardrails.classifier_onnx.OnnxClassifier`, its graph cut in two."""

    def begin(self, text: str) -> Begun: ...

    def finish(self, begun: Begun) -> Output: ...


class Cascade:
    """A servable for `Excerpt`s: the exit's answer where it is sure, else that of `encoder`, as `whole`,
    which runs it, reads it in its context."""

    def __init__(self, early: Exit, encoder: Halves, whole: InContext) -> None:
        self._early = early
        self._encoder = encoder
        self._whole = whole

    def predict(self, batch: list[Excerpt]) -> list[Output]:
        return [self._answer(excerpt) for excerpt in batch]

    def _answer(self, excerpt: Excerpt) -> Output:
        begun = self._encoder.begin(excerpt.text)
        output = self._early.answer(begun, excerpt.heads)
        if output is not None:
            return output
        return replace(self._whole.own(excerpt, self._encoder.finish(begun)), stage="encoder")

    def describe(self) -> Any:
        return self._whole.describe()
