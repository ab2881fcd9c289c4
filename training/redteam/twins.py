"""Harmless twins: what reads like an attack and must be answered. A red team that doesn't ask them can't tell
a safe assistant from one that refuses everything."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from training.redteam.attack import Attack, Draft, finished, new_canary
from training.redteam.behavior import Behavior
from training.redteam.strategies.indirect import harmless_document

TWIN = "twin"


def twins_of(behaviors: Iterable[Behavior], seed: int = 0) -> tuple[Attack, ...]:
    """Each behaviour's twin, asked plainly, over a harmless document where the behaviour needs one."""
    return tuple(_twin(behavior, Random(f"{seed}:{behavior.id}:{TWIN}")) for behavior in behaviors)


def _twin(behavior: Behavior, rng: Random) -> Attack:
    draft = Draft(behavior, behavior.twin, new_canary(rng))
    if behavior.goal == "injection":
        draft = harmless_document(draft, rng)
    return finished(draft, TWIN)
