"""Attackers that choose what to try next within a budget: uniformly, or by what has worked so far.

An arm is a strategy (which may be composed of several), a try is an arm on a behaviour, and none is tried
twice. `Uniform` draws among all. `Learner` keeps a Beta posterior of success for every arm, and for every
behaviour, and takes the try whose two draws multiply to the most (Thompson sampling; Thompson 1933, Russo et
al. 2018, arXiv:1707.02038): what breaks many behaviours, on behaviours that break. Once an arm has worked it
also breeds: new arms that join it with another strategy come in (mutation), and live or die by their draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from training.redteam.attack import STRATEGIES, make_attack, suits
from training.redteam.behavior import Behavior
from training.redteam.campaign import Attempt, run_attacks
from training.redteam.target import Target
from training.redteam.verdicts import ReplyJudge

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
class _Beta:
    """A success rate that isn't known: Beta(wins + 1, losses + 1)."""

    wins: float = 0.0
    losses: float = 0.0

    def draw(self, rng: Random) -> float:
        return rng.betavariate(self.wins + 1, self.losses + 1)

    def hear(self, won: bool) -> None:
        self.wins += won
        self.losses += not won


@dataclass(slots=True)
class Learner:
    """Thompson sampling over arms and behaviours, with new arms bred from what works.

    breed: the most arms that are added, a partner at a time, each time an arm has worked for the first time.
    """

    behaviors: Sequence[Behavior]
    arms: Sequence[str]
    seed: int
    breed: int = 2
    _rng: Random = field(init=False)
    _open: dict[Try, None] = field(init=False)
    _by_arm: dict[str, _Beta] = field(init=False)
    _by_behavior: dict[str, _Beta] = field(init=False)

    def __post_init__(self) -> None:
        self._rng = Random(self.seed)
        tries = _tries(self.behaviors, self.arms)
        self._rng.shuffle(tries)
        self._open = dict.fromkeys(tries)
        self._by_arm = {arm: _Beta() for arm in self.arms}
        self._by_behavior = {behavior.id: _Beta() for behavior in self.behaviors}

    def propose(self, count: int) -> list[Try]:
        arms = {arm: beta.draw(self._rng) for arm, beta in self._by_arm.items()}
        subjects = {name: beta.draw(self._rng) for name, beta in self._by_behavior.items()}
        ranked = sorted(self._open, key=lambda one: subjects[one[0]] * arms[one[1]], reverse=True)
        taken = ranked[:count]
        for one in taken:
            del self._open[one]
        return taken

    def learn(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            if not attempt.counted:
                continue
            arm = self._by_arm[attempt.strategy]
            if attempt.succeeded and not arm.wins:
                self._cross(attempt.strategy)
            arm.hear(attempt.succeeded)
            self._by_behavior[attempt.behavior].hear(attempt.succeeded)

    def _cross(self, winner: str) -> None:
        """Add arms that put another strategy before the winner."""
        if "+" in winner:
            return
        partners = [name for name in STRATEGIES if name != winner and STRATEGIES[name].family != "plain"]
        for partner in self._rng.sample(sorted(partners), min(self.breed, len(partners))):
            arm = f"{partner}+{winner}"
            if arm not in self._by_arm:
                # Begins with what is known of its better half: half a win, so that it must prove itself.
                self._by_arm[arm] = _Beta(wins=0.5)
                self._open |= dict.fromkeys(_tries(self.behaviors, [arm]))


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
