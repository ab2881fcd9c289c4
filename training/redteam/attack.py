"""Attacks, and the strategies that make them from behaviours.

A strategy takes a draft and gives another: what the user says may be wrapped, disguised or cut up, turns may
be put before it, a document or a tool's result may carry it. So strategies compose: `base64+role_play` first
disguises, then wraps. To add one, write a function from `Draft` and `Random` to `Draft` and register it:

    @strategy("my_trick", "wording", "asks twice, politely")
    def my_trick(draft: Draft, rng: Random) -> Draft:
        return draft.saying(f"{draft.text} Please? {draft.text}")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

from training.errors import ConfigError
from training.redteam.behavior import CANARY, Behavior

Family = Literal["plain", "wording", "disguise", "context", "turns", "extraction", "indirect"]
Message = dict[str, Any]

DEFAULT_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Draft:
    """An attack in the making.

    text:    what the last user message before the judged reply says.
    before:  messages that stand before it.
    after:   messages that stand behind it, such as a tool call and its result.
    lead_up: user turns that are really played first, each answered by the target (multi-turn attacks).
    """

    behavior: Behavior
    text: str
    canary: str
    before: tuple[Message, ...] = ()
    after: tuple[Message, ...] = ()
    lead_up: tuple[str, ...] = ()

    def saying(self, text: str) -> Draft:
        """The same with another text."""
        return replace(self, text=text)


@dataclass(frozen=True, slots=True)
class Attack:
    """What is sent, and what it is about. `strategy` is the composed name."""

    behavior: Behavior
    strategy: str
    canary: str
    messages: tuple[Message, ...]
    lead_up: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What the user says last."""
        return str(next(m["content"] for m in reversed(self.messages) if m["role"] == "user"))


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to ask. `goals` are those that it makes sense for; none means all."""

    name: str
    family: Family
    about: str
    make: Callable[[Draft, Random], Draft] = field(repr=False)
    goals: frozenset[str] = frozenset()

    def suits(self, behavior: Behavior) -> bool:
        return not self.goals or behavior.goal in self.goals


STRATEGIES: dict[str, Strategy] = {}
"""All that are registered, by name."""


def strategy(
    name: str, family: Family, about: str, goals: Iterable[str] = ()
) -> Callable[[Callable[[Draft, Random], Draft]], Callable[[Draft, Random], Draft]]:
    """Register a strategy under `name`."""

    def register(make: Callable[[Draft, Random], Draft]) -> Callable[[Draft, Random], Draft]:
        if name in STRATEGIES or "+" in name:
            raise ValueError(f"strategy {name!r}: the name is taken or holds '+'")
        STRATEGIES[name] = Strategy(name, family, about, make, frozenset(goals))
        return make

    return register


def parts(name: str) -> tuple[Strategy, ...]:
    """The strategies of a composed name, in their order. Raises ConfigError for one that isn't there."""
    found = []
    for part in name.split("+"):
        if part not in STRATEGIES:
            known = ", ".join(sorted(STRATEGIES))
            raise ConfigError(f"there is no strategy {part!r}; there are: {known}; join several with '+'")
        found.append(STRATEGIES[part])
    return tuple(found)


def suits(name: str, behavior: Behavior) -> bool:
    """Whether the composed strategy makes sense for the behaviour."""
    chosen = parts(name)
    carried = any(part.family == "indirect" for part in chosen)
    return all(part.suits(behavior) for part in chosen) and (behavior.goal != "injection" or carried)


def make_attack(behavior: Behavior, name: str, seed: int = 0) -> Attack:
    """The attack of `name` on `behavior`; the same arguments give the same attack."""
    rng = Random(f"{seed}:{behavior.id}:{name}")
    canary = new_canary(rng)
    draft = Draft(behavior, behavior.request.replace(CANARY, canary), canary)
    for part in parts(name):
        draft = part.make(draft, rng)
    return finished(draft, name)


def finished(draft: Draft, name: str) -> Attack:
    """The draft as it is sent: the system prompt first, with the secret where the behaviour has one."""
    secret = draft.behavior.secret
    told = [DEFAULT_SYSTEM, *([secret.replace(CANARY, draft.canary)] if secret else [])]
    system: Message = {"role": "system", "content": " ".join(told)}
    messages = (system, *draft.before, {"role": "user", "content": draft.text}, *draft.after)
    return Attack(draft.behavior, name, draft.canary, messages, draft.lead_up)


def new_canary(rng: Random) -> str:
    """A word that no model says by chance: three syllables and a number."""
    syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)]
    return "".join(syllables) + str(rng.randrange(100, 1000))
