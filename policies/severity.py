"""Severity: how far a classifier's score may go before something, and then something stronger, is done.

One threshold with one action is a ladder with a single step. With `levels`, a score meets the highest step
that it reaches: reported at 0.4, replaced at 0.6, a person's to look at from 0.8 on, blocked at 0.95.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from policies.base import Frozen
from policies.errors import Loc, Problem

LevelAction = Literal["allow", "log", "redact", "rewrite", "escalate", "block"]

STRENGTH: tuple[LevelAction, ...] = ("allow", "log", "redact", "rewrite", "escalate", "block")
"""Weakest first. Of `allow` and `log` neither touches the text."""


class Level(Frozen):
    """From the score `at` on, `action` follows.

    `replacement` is what stands in the text's place with `redact` (left out: the category in brackets) and
    `rewrite` (which needs one). `penalty` makes the step a soft constraint of reranking: it is taken off
    the score of every candidate in which the step is reached.
    """

    at: Annotated[float, Field(ge=0.0, le=1.0)]
    action: LevelAction
    replacement: Annotated[str, Field(max_length=1_000)] | None = None
    penalty: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0


Levels = tuple[Level, ...]


def level_problems(loc: Loc, levels: Sequence[Level]) -> Iterator[Problem]:
    """What makes no sense as a ladder: steps out of order, and steps whose settings do nothing."""
    for index, level in enumerate(levels):
        place = (*loc, index)
        if level.action == "rewrite" and not level.replacement:
            yield Problem(place, "'rewrite' needs 'replacement': what is said instead")
        if level.replacement is not None and level.action not in ("redact", "rewrite"):
            yield Problem((*place, "replacement"), f"{level.action!r} replaces nothing: leave it out")
        if index == 0:
            continue
        before = levels[index - 1]
        if level.at <= before.at:
            message = f"levels rise: this one begins at {level.at}, the one before it at {before.at}"
            yield Problem((*place, "at"), message)
        if STRENGTH.index(level.action) < STRENGTH.index(before.action):
            message = f"a higher score can't be met by less: {level.action!r} comes after {before.action!r}"
            yield Problem((*place, "action"), message)


def idle_penalties(loc: Loc, levels: Sequence[Level]) -> Iterator[Problem]:
    """Penalties where no candidates are compared: they would do nothing, in silence."""
    for index, level in enumerate(levels):
        if level.penalty:
            message = "a 'penalty' is taken off the scores of candidates: it needs 'rerank', under 'output'"
            yield Problem((*loc, index, "penalty"), message)


def ladder_problems(levels: Levels, categories: Mapping[str, Levels]) -> Iterator[Problem]:
    """The same over a guard's own ladder and those of its categories."""
    yield from level_problems(("levels",), levels)
    for label, own in categories.items():
        if not own:
            yield Problem(("categories", label), "give at least one level, or leave the category out")
        yield from level_problems(("categories", label), own)
