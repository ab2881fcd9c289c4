"""Evidence over the pieces of a text: what no piece shows alone, several in a row may.

Page's cumulative sum (1954), for each label. With p_k the score of piece k and d the rule's `above`,

    S_k = max(0, S_{k-1} + logit p_k - logit d),        flagged where S_k >= limit, and then S_k = 0.

A piece that scores below d takes evidence away, so the sum is soon 0 again in harmless text. Pieces count
in the order of the text, whenever their answers come: so what is flagged depends on the text alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

LEAST = 1e-6
"""Scores are held between this and one minus this."""


def logit(p: float) -> float:
    """Log-odds of a score."""
    p = min(max(p, LEAST), 1.0 - LEAST)
    return math.log(p / (1.0 - p))


@dataclass(slots=True)
class Piece:
    """A part of the text, scored once all its `readings` are answered: each label's highest score."""

    start: int
    end: int
    readings: int
    scores: dict[str, float] = field(default_factory=dict)


class Evidence:
    """The sums of one text under examination."""

    __slots__ = ("_drift", "_floor", "_limit", "_pieces", "_sums")

    def __init__(self, above: float, limit: float) -> None:
        self._drift = logit(above)
        self._limit = limit
        self._floor = 0
        self._sums: dict[str, float] = {}
        self._pieces: list[Piece] = []

    def begin(self, floor: int) -> None:
        """What ends before `floor` is not answered for, and counts for nothing."""
        self._floor = floor

    def expect(self, start: int, end: int, readings: int) -> Piece:
        """A further piece, which follows the others in the text."""
        piece = Piece(start, end, readings)
        if end > self._floor:
            self._pieces.append(piece)
        return piece

    def add(self, piece: Piece, scores: Mapping[str, float]) -> Iterator[tuple[Piece, str]]:
        """Take one reading's scores; the pieces and labels at which a sum has reached the limit by them."""
        piece.readings -= 1
        for label, score in scores.items():
            piece.scores[label] = max(score, piece.scores.get(label, 0.0))
        while self._pieces and self._pieces[0].readings == 0:
            first = self._pieces.pop(0)
            for label, score in first.scores.items():
                total = max(0.0, self._sums.get(label, 0.0) + logit(score) - self._drift)
                if total >= self._limit:
                    total = 0.0
                    yield first, label
                self._sums[label] = total
