"""Near-duplicate texts without comparing every two: MinHash with banding, then the true overlap.

A text is its set of word 3-grams (of words, where it has fewer). The chance that two sets have the same
minimum under a random hash is their Jaccard overlap (Broder 1997), so texts that agree in a whole band of
such minima are candidates, and a candidate counts when its overlap, computed exactly, is high enough.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

BANDS, ROWS = 24, 4
"""A pair with overlap 0.8 shares a band with probability 1 - (1 - 0.8⁴)²⁴ > 0.999; one with 0.3, 0.18."""
_PRIME = np.uint64((1 << 31) - 1)
_SEED = 20
_LARGE = 50
_WORD = re.compile(r"\w+")


def normal_form(text: str) -> str:
    """The text's words, case folded: what exact duplicates are compared by."""
    return " ".join(_WORD.findall(text.casefold()))


def shingles(text: str, width: int = 3) -> frozenset[int]:
    """Hashes of the text's word n-grams."""
    words = normal_form(text).split()
    grams = {" ".join(words[i : i + width]) for i in range(max(1, len(words) - width + 1))}
    return frozenset(
        int.from_bytes(hashlib.blake2b(g.encode(), digest_size=4).digest(), "big") for g in grams
    )


def overlap(left: frozenset[int], right: frozenset[int]) -> float:
    """Jaccard: shared n-grams by all n-grams of the two."""
    return len(left & right) / len(left | right)


def near_duplicates(texts: Sequence[str], least: float = 0.8) -> list[tuple[int, int, float]]:
    """Pairs (i, j, overlap) with i < j whose overlap is at least `least`.

    Of more than 50 texts that share a band (boilerplate) each is compared with the first only.
    """
    sets = [shingles(text) for text in texts]
    found: dict[tuple[int, int], float] = {}
    for i, j in _candidates(sets):
        if (i, j) not in found:
            found[i, j] = overlap(sets[i], sets[j])
    return sorted((i, j, value) for (i, j), value in found.items() if value >= least)


def _candidates(sets: Sequence[frozenset[int]]) -> Iterator[tuple[int, int]]:
    signatures = [_signature(s) for s in sets]
    for band in range(BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for index, signature in enumerate(signatures):
            buckets[signature[band * ROWS : (band + 1) * ROWS].tobytes()].append(index)
        for members in buckets.values():
            if len(members) > _LARGE:
                yield from ((members[0], other) for other in members[1:])
            else:
                yield from combinations(members, 2)


def _signature(grams: frozenset[int]) -> NDArray[np.uint64]:
    values = np.fromiter(grams, dtype=np.uint64, count=len(grams)) % _PRIME
    return np.asarray(((_FACTORS[:, None] * values + _OFFSETS[:, None]) % _PRIME).min(axis=1))


_draw = np.random.default_rng(_SEED)
_FACTORS = _draw.integers(1, int(_PRIME), BANDS * ROWS, dtype=np.uint64)
_OFFSETS = _draw.integers(0, int(_PRIME), BANDS * ROWS, dtype=np.uint64)
