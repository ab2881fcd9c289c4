"""Plain English of a given length, so that what simulated callers say is harmless by what it says.

Words drawn one by one are not: a model that was trained on attacks reads some salads of harmless words as one
("Before the gate and for.": 0.93 for an injection).
"""

from __future__ import annotations

import random

_SHORT = {
    1: ("Yes", "No", "Thanks", "Maybe", "Why", "Today"),
    2: ("Thank you", "Go on", "Not yet", "Very well"),
}
_WHO = (
    "the miller",
    "my sister",
    "our neighbour",
    "the teacher",
    "a friend",
    "the baker",
    "his mother",
    "her uncle",
)
_DID = ("waited", "walked", "sang", "worked", "talked", "slept", "laughed", "cooked", "rested", "read")
_MORE = {
    1: ("quietly", "again", "slowly", "outside", "there", "alone", "happily", "together"),
    2: ("after lunch", "before noon", "last week", "every morning", "at home", "all day", "in spring"),
    3: ("near the river", "in the garden", "at the station", "with some friends", "for an hour"),
    4: ("behind the old gate", "on the way home", "by the kitchen door", "under the apple tree"),
}
_JOINTS = ("and", "while", "because", "but")
_CLAUSE = 12  # words, at the most, before the next clause begins
_SHORTEST = 3  # words of a clause: who did


def text(rng: random.Random, words: int) -> str:
    """One sentence of exactly so many words, at least one."""
    if words in _SHORT:
        return f"{rng.choice(_SHORT[words])}."
    said: list[str] = []
    while (left := words - len(said)) > 0:
        if said:
            said.append(rng.choice(_JOINTS))
            left -= 1
        # What is left behind a clause must be enough for a joint and another one.
        length = left if left <= _CLAUSE else min(rng.randint(5, _CLAUSE), left - _SHORTEST - 1)
        said += _clause(rng, length)
    return " ".join(said).capitalize() + "."


def _clause(rng: random.Random, words: int) -> list[str]:
    said = [*rng.choice(_WHO).split(), rng.choice(_DID)]
    while (left := words - len(said)) > 0:
        said += rng.choice(_MORE[rng.randint(1, min(left, max(_MORE)))]).split()
    return said
