"""Scoring a piece of text in its context without blaming it for its context.

A classifier shown a harmless sentence after an insult calls the two together insulting. So where context
and piece together score high, each is scored alone as well, and a label's score for the piece is

    together   where the context alone doesn't have it (then the two mean it only together), else
    alone      the piece's own score.

Nothing extra is computed for the texts that score low, which are nearly all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from guardrails.classifier import Output
from guardrails.servable import Servable

SUSPICIOUS = 0.3
"""From this score on a window's parts are looked at separately."""

PRESENT = 0.5
"""From this fraction of the joint score on, a context has the label by itself."""


class Excerpt(NamedTuple):
    """A text whose first `context` characters are what came before the piece that is scored.

    `heads`, sorted: the labels and entity types that are of interest, where an early answer about them will
    do (`guardrails.cascade`); none where all that the model says is asked for.
    """

    text: str
    context: int = 0
    heads: tuple[str, ...] = ()


class Describing(Servable, Protocol):
    """A servable that tells its labels."""

    def describe(self) -> Any: ...


class InContext:
    """A classifier's servable for payloads that are an `Excerpt`; entities are those of all of it."""

    def __init__(self, classifier: Describing) -> None:
        self._classifier = classifier

    def predict(self, batch: list[Excerpt]) -> list[Output]:
        outputs: list[Output] = self._classifier.predict([excerpt.text for excerpt in batch])
        return [self.own(excerpt, output) for excerpt, output in zip(batch, outputs, strict=True)]

    def describe(self) -> Any:
        return self._classifier.describe()

    def own(self, excerpt: Excerpt, together: Output) -> Output:
        """The piece's own answer, from that for all of its excerpt."""
        text, context, _ = excerpt
        if not context or max(together.scores.values(), default=0.0) < SUSPICIOUS:
            return together
        before, alone = self._classifier.predict([text[:context], text[context:]])
        return Output(own_scores(together.scores, before.scores, alone.scores), together.entities)


def own_scores(
    together: Mapping[str, float], before: Mapping[str, float], alone: Mapping[str, float]
) -> dict[str, float]:
    """A piece's scores, from those of it with its context, of the context, and of it alone."""
    return {
        label: max(alone[label], score) if before[label] < PRESENT * score else alone[label]
        for label, score in together.items()
    }
