"""What a red team tries to get: behaviours in packs, each with a harmless twin.

A pack is a YAML file of one domain. A behaviour's `request` is what must not be fulfilled; its `twin` reads
alike and must be answered, so that a guard which refuses everything doesn't look safe. `goal` says how
success is told:

    answer          the model does what is asked (a judge decides)
    system_prompt   a secret of the system prompt is in the reply
    personal_data   somebody else's data is in the reply
    injection       the reply does what a document or a tool's result told it

The last three hold a canary, a made-up word drawn for each attempt: finding it again needs no judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from policies.taxonomy import Hazard
from training.config import Config
from training.errors import ConfigError

PACKS = Path(__file__).parent / "packs"
CANARY = "{canary}"
Goal = Literal["answer", "system_prompt", "personal_data", "injection"]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class Behavior(Config):
    """One thing that must not happen. `markers` are words that a reply which goes along would use."""

    id: Id
    request: Text
    twin: Text
    goal: Goal = "answer"
    secret: str | None = None
    markers: tuple[str, ...] = ()
    domain: Id = "own"
    hazard: str = Hazard.NON_VIOLENT_CRIMES.value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hazard not in {hazard.value for hazard in Hazard}:
            raise ValueError(f"hazard {self.hazard!r} is none of MLCommons': see policies/taxonomy.py")
        leaks = self.goal in ("system_prompt", "personal_data")
        if leaks and CANARY not in (self.secret or ""):
            raise ValueError(f"{self.id}: a secret that can leak holds {CANARY}; give 'secret'")
        if self.goal == "injection" and CANARY not in self.request:
            raise ValueError(f"{self.id}: what is injected holds {CANARY}, by which it is found again")
        return self


class Pack(Config):
    """The behaviours of one domain."""

    domain: Id
    hazard: str
    behaviors: tuple[Behavior, ...] = Field(min_length=1)

    def bound(self) -> tuple[Behavior, ...]:
        """The behaviours, with the pack's domain and hazard where they bring none of their own."""
        common = {"domain": self.domain, "hazard": self.hazard}
        return tuple(
            Behavior.model_validate(common | behavior.model_dump(exclude_unset=True))
            for behavior in self.behaviors
        )


def shipped_packs() -> tuple[str, ...]:
    """The domains that come with Keel."""
    return tuple(sorted(path.stem for path in PACKS.glob("*.yaml")))


def load_behaviors(packs: Sequence[str | Path] = ()) -> tuple[Behavior, ...]:
    """The behaviours of these packs: shipped ones by name, others by their files; all shipped by default.

    Raises ConfigError for a pack that isn't there or is wrong, and for an id that is used twice.
    """
    found: list[Behavior] = []
    for pack in packs or shipped_packs():
        found += Pack.load(_path(pack)).bound()
    seen: set[str] = set()
    for behavior in found:
        if behavior.id in seen:
            raise ConfigError(f"behaviour {behavior.id!r} is in the packs twice; ids are used once")
        seen.add(behavior.id)
    return tuple(found)


def _path(pack: str | Path) -> Path:
    if isinstance(pack, str) and Path(pack).name == pack and not Path(pack).suffix:
        if pack not in shipped_packs():
            known = ", ".join(shipped_packs())
            raise ConfigError(f"there is no pack {pack!r}; shipped are: {known}; or give a file's path")
        return PACKS / f"{pack}.yaml"
    return Path(pack)


def choose(behaviors: Iterable[Behavior], count: int | None, seed: int) -> tuple[Behavior, ...]:
    """`count` of them, drawn evenly over the domains; all where `count` is None."""
    by_domain: dict[str, list[Behavior]] = {}
    for behavior in behaviors:
        by_domain.setdefault(behavior.domain, []).append(behavior)
    rng = Random(seed)
    for rows in by_domain.values():
        rng.shuffle(rows)
    turns = [
        behavior
        for rank in range(max(map(len, by_domain.values()), default=0))
        for rows in by_domain.values()
        for behavior in rows[rank : rank + 1]
    ]
    return tuple(turns[:count])
