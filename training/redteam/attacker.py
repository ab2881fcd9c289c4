"""Attackers that choose what to try next within a budget: uniformly, or by what has worked so far.

An arm is a strategy (which may be composed of several), a try is an arm on a behaviour, and none is tried
twice. `Uniform` draws among all. `Learner` keeps a posterior of what tries are worth by what they are made of
(`training.redteam.worth`), and takes those that draws from it like best. Once an arm has worked it also
breeds: new arms that join it with another strategy come in (mutation), and live or die by their draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import numpy as np

from training.redteam.attack import STRATEGIES, make_attack, suits
from training.redteam.behavior import Behavior
from training.redteam.campaign import Attempt, run_attacks
from training.redteam.target import Target
from training.redteam.verdicts import ReplyJudge
from training.redteam.worth import Floats, Worth

Try = tuple[str, str]
"""A behaviour's id and a strategy."""


def default_arms() -> tuple[str, ...]:
    """Every registered strategy by itself."""
    return tuple(sorted(STRATEGIES))


class Attacker(Protocol):
    """Chooses tries and hears what came of them."""

    def propose(self, count: int) -> list[Try]: ...

    def learn(self, attempts: Iterable[Attempt]) -> None: ...


class Uniform:
    """Every try is as likely as any other."""

    def __init__(self, behaviors: Sequence[Behavior], arms: Sequence[str], seed: int) -> None:
        self._open = _tries(behaviors, arms)
        Random(seed).shuffle(self._open)

    def propose(self, count: int) -> list[Try]:
        taken, self._open = self._open[:count], self._open[count:]
        return taken

    def learn(self, attempts: Iterable[Attempt]) -> None:
        """Nothing is learnt."""


@dataclass(slots=True)
class Learner:
    """Thompson sampling over what tries are made of, with new arms bred from what works.

    breed: the most arms that are added, a partner at a time, each time an arm has worked for the first time.
    """

    behaviors: Sequence[Behavior]
    arms: Sequence[str]
    seed: int
    breed: int = 2
    _rng: Random = field(init=False)
    _by_id: dict[str, Behavior] = field(init=False)
    _worth: Worth = field(init=False)
    _rows: dict[Try, Floats] = field(init=False, default_factory=dict)  # of all tries that were ever open
    _open: list[Try] = field(init=False, default_factory=list)
    _won: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._rng = Random(self.seed)
        self._by_id = {behavior.id: behavior for behavior in self.behaviors}
        self._worth = Worth(self.behaviors, np.random.default_rng(self.seed))
        self._add(self.arms)
        self._rng.shuffle(self._open)  # among equals, the first is taken

    def propose(self, count: int) -> list[Try]:
        if not self._open:
            return []
        rows_ND = np.stack([self._rows[one] for one in self._open])
        taken: dict[int, None] = {}
        for values_N in self._worth.draws(rows_ND, min(count, len(self._open))):
            ranked = np.argsort(-values_N, kind="stable")
            taken[next(int(place) for place in ranked if int(place) not in taken)] = None
        chosen = [self._open[place] for place in taken]
        self._open = [one for place, one in enumerate(self._open) if place not in taken]
        return chosen

    def learn(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            if not attempt.counted:
                continue
            self._worth.hear(self._rows[attempt.behavior, attempt.strategy], attempt.outcome)
            if attempt.succeeded and attempt.strategy not in self._won:
                self._won.add(attempt.strategy)
                self._cross(attempt.strategy)

    def _cross(self, winner: str) -> None:
        """Add arms that put another strategy before the winner."""
        if "+" in winner:
            return
        partners = [name for name in STRATEGIES if name != winner and STRATEGIES[name].family != "plain"]
        self._add(
            f"{partner}+{winner}"
            for partner in self._rng.sample(sorted(partners), min(self.breed, len(partners)))
        )

    def _add(self, arms: Iterable[str]) -> None:
        for one in _tries(self.behaviors, tuple(arms)):
            if one not in self._rows:
                self._rows[one] = self._worth.row(self._by_id[one[0]], one[1])
                self._open.append(one)


def _tries(behaviors: Iterable[Behavior], arms: Sequence[str]) -> list[Try]:
    return [(behavior.id, arm) for behavior in behaviors for arm in arms if suits(arm, behavior)]


async def hunt(
    target: Target,
    behaviors: Sequence[Behavior],
    judges: Sequence[ReplyJudge],
    attacker: Attacker,
    *,
    budget: int,
    batch: int = 16,
    seed: int = 0,
    concurrency: int = 8,
    progress: Callable[[Attempt], None] = lambda _: None,
) -> list[Attempt]:
    """`budget` tries, `batch` at a time, each batch chosen by what the attacker has heard of those before."""
    by_id = {behavior.id: behavior for behavior in behaviors}
    done: list[Attempt] = []
    while len(done) < budget:
        tries = attacker.propose(min(batch, budget - len(done)))
        if not tries:
            break
        attacks = [make_attack(by_id[behavior], arm, seed) for behavior, arm in tries]
        attempts = await run_attacks(target, attacks, judges, concurrency=concurrency, progress=progress)
        attacker.learn(attempts)
        done += attempts
    return done
