"""Which pair a rater sees next: the one whose answer would tell most, and some that others have judged too.

Of each pair's probability that its first reply is better there is a Beta distribution: a prior from the
rewards' gap, where it is known, and a count for each judgement. A draw from it near one half means that the
pair may still be undecided (Thompson's way of exploring, 1933). A set share of turns goes to pairs that one
or two others have judged, so that the raters' agreement can be told; of those, the ones judged differently
come first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

OVERLAP = 0.25
ENOUGH = 3  # judgements of one pair
PRIOR = 4.0  # judgements that a known gap of rewards counts for


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair that this rater hasn't judged. `first` and `second` count votes for each."""

    id: str
    gap: float | None
    first: int
    second: int
    ties: int

    @property
    def judged(self) -> int:
        return self.first + self.second + self.ties

    @property
    def disputed(self) -> bool:
        return self.first > 0 and self.second > 0


def choose(candidates: Sequence[Candidate], rng: Random, overlap: float = OVERLAP) -> Candidate | None:
    """The next pair; None where there is none left."""
    fresh = [one for one in candidates if one.judged == 0]
    shared = [one for one in candidates if 0 < one.judged < ENOUGH]
    pool = shared if shared and (not fresh or rng.random() < overlap) else fresh
    if not pool:
        return None
    return max(pool, key=lambda one: (one.disputed, _undecided(one, rng)))


def _undecided(one: Candidate, rng: Random) -> float:
    """0 to 1: how near to one half a draw of the pair's probability is."""
    first, second = 1.0 + one.first + one.ties / 2, 1.0 + one.second + one.ties / 2
    if one.gap is not None:
        expected = 1 / (1 + math.exp(-max(-30.0, min(30.0, one.gap))))
        first, second = first + PRIOR * expected, second + PRIOR * (1 - expected)
    return 1 - abs(2 * rng.betavariate(first, second) - 1)
