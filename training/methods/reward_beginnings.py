"""Pairs of beginnings, so that a reward model can tell early which reply is becoming the better one.

Speculative rejection and blockwise selection ask for the score of a reply that isn't finished. A model that
has read whole replies alone finds all beginnings poor alike. Here both replies of a pair are cut after the
same number of words, and the choice between the whole ones is kept as the label: under Bradley–Terry the
score of a beginning then tends to what its continuations are worth on average (a value function, as the
prefix scorer of Mudgal et al. 2024, arXiv:2310.17022, fitted to comparisons in place of rewards).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from training.data.preferences import Comparison, Preference

LEAST = 2
"""Words of a beginning, at least."""


def beginnings(comparisons: Sequence[Comparison], share: float, seed: int) -> list[Preference]:
    """A pair of beginnings for that share of the pairs, where the cut leaves two different ones.

    The shorter reply may be whole already: that is how a finished reply is compared with one that goes on.
    Rankings are left out. With a `share` above 1 pairs are cut more than once.
    """
    chance = random.Random(f"{seed}/beginnings")
    cut: list[Preference] = []
    for pair in comparisons:
        if not isinstance(pair, Preference):
            continue
        for _ in range(int(share) + (chance.random() < share % 1)):
            longest = max(len(pair.chosen.split()), len(pair.rejected.split()))
            if longest <= LEAST:
                continue
            words = chance.randrange(LEAST, longest)
            chosen, rejected = begun(pair.chosen, words), begun(pair.rejected, words)
            if chosen != rejected:
                cut.append(replace(pair, chosen=chosen, rejected=rejected, strength=0.0))
    return cut


def begun(text: str, words: int) -> str:
    """The first words of a text, and the space between them as it was."""
    pieces = text.split(" ")
    seen = accumulate(bool(piece) for piece in pieces)
    return " ".join(piece for piece, count in zip(pieces, seen, strict=True) if count <= words).rstrip()
