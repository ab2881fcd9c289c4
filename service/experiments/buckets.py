"""Which arm a unit is on: weighted rendezvous hashing.

Each arm draws for each unit an exponential variate whose rate is the arm's share, from a hash of the
experiment's name, the arm's and the unit; the smallest wins. So an arm gets exactly its share, every replica
says the same without asking anybody, experiments are independent of one another, and when shares change few
units move: where one arm's share changes in relation to the others (a ramp), only units that it gains or
loses, which is the least that is possible; in general at most 2d/(1+d) of them, d being the total variation
between the shares, which nothing that keeps no memory of units can better. Sources: Thaler & Ravishankar 1998
(highest random weight), its weighted form by Schindelhauer & Schomaker 2005 ("logarithmic method"); Bavarian,
Ghazi, Haramaty, Kamath, Rivest & Sudan 2020, "Optimality of correlated sampling strategies".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

SCALE = 2.0**-64


def choose(experiment: str, shares: Mapping[str, float], unit: str) -> str:
    """The arm of `unit`. `shares` are not negative, one at least is above 0; their scale doesn't matter."""
    best, chosen = math.inf, ""
    for arm, share in shares.items():
        if share > 0:
            drawn = -math.log(fraction(experiment, arm, unit)) / share
            if drawn < best:
                best, chosen = drawn, arm
    return chosen


def fraction(*parts: str) -> float:
    """A number in (0, 1), uniform over units: the same for the same parts everywhere."""
    text = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return (number + 0.5) * SCALE if number < 2**64 - 2**11 else 1.0 - 2.0**-53
