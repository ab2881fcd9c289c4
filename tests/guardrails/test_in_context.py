"""A piece is scored for what it says, and for what it means only together with its context."""

from __future__ import annotations

import pytest

from guardrails.classifier import Entity, Output
from guardrails.in_context import Excerpt, InContext, own_scores


@pytest.mark.parametrize(
    ("together", "before", "alone", "own"),
    [
        (0.9, 0.9, 0.1, 0.1),  # the context's fault
        (0.9, 0.1, 0.9, 0.9),  # its own
        (0.9, 0.1, 0.2, 0.9),  # only together
        (0.9, 0.9, 0.95, 0.95),  # both
        (0.35, 0.1, 0.6, 0.6),  # watered down by its context
    ],
)
def test_own_score(together: float, before: float, alone: float, own: float) -> None:
    assert own_scores({"x": together}, {"x": before}, {"x": alone}) == {"x": own}


class Counting:
    """A classifier whose score is told by the text, and which counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def predict(self, batch: list[str]) -> list[Output]:
        self.asked += batch
        return [
            Output({"x": 0.9 if "bad" in text else 0.1}, (Entity("PERSON", 0, 1, 0.9),)) for text in batch
        ]

    def describe(self) -> list[str]:
        return ["x"]


def test_parts_are_scored_only_where_the_whole_is_suspicious() -> None:
    classifier = Counting()
    servable = InContext(classifier)
    plain, blamed, first = servable.predict(
        [Excerpt("fine. ok", 6), Excerpt("bad. fine", 5), Excerpt("bad at once")]
    )
    assert (plain.scores["x"], blamed.scores["x"], first.scores["x"]) == (0.1, 0.1, 0.9)
    assert classifier.asked == ["fine. ok", "bad. fine", "bad at once", "bad. ", "fine"]
    assert blamed.entities == (Entity("PERSON", 0, 1, 0.9),)
    assert servable.describe() == ["x"]
