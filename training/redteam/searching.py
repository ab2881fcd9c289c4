"""Search against a gateway's live scores, over many attacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rich.console import Console

from training.redteam.api import run
from training.redteam.attack import Attack, Message
from training.redteam.search import Found, search
from training.redteam.target import HttpTarget

BELOW = 0.3
"""The score that a text is searched down to."""


def searched(
    target: HttpTarget,
    attacks: Sequence[Attack],
    *,
    below: float = BELOW,
    seed: int = 0,
    console: Console,
    progress: Callable[[], None] = lambda: None,
) -> tuple[Attack, ...]:
    """Each attack, its text changed until the input guards' highest score is under `below`, if it can be."""

    async def all_of_them() -> list[Found]:
        async with target:
            return list(await asyncio.gather(*map(one, attacks)))

    async def one(attack: Attack) -> Found:
        end = await _one(target, attack, below, seed)
        progress()
        return end

    found = run(all_of_them())
    changed = [one for one in found if one.history[0] >= below]
    passed = sum(one.score < below for one in changed)
    console.print(
        f"search: {len(changed)} of {len(found)} texts scored {below:g} or more, {passed} came under it"
    )
    return tuple(one.attack for one in found)


async def _one(target: HttpTarget, attack: Attack, below: float, seed: int) -> Found:
    async def score(messages: Sequence[Message]) -> float:
        scores = await target.scores(messages)
        return max(scores.values(), default=0.0)

    return await search(attack, score, below=below, seed=seed)
