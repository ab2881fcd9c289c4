"""What the settings of guards have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from policies.base import Frozen, Name
from policies.errors import Problem, located
from policies.severity import Level, Levels, ladder_problems

OnError = Literal["block", "allow", "escalate"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class GuardBase(Frozen):
    """What every guard takes. `label` tells two uses of one guard apart in findings and metrics."""

    label: Name | None = None
    on_error: OnError | None = None
    deadline_ms: Annotated[int, Field(gt=0, le=60_000)] = 2_000

    @property
    def title(self) -> str:
        return self.label or str(self.guard)  # type: ignore[attr-defined]  # every subclass has the discriminator


class ScoredBase(GuardBase):
    """A guard that acts on scores, label by label.

    `threshold` and `action` are one step; `levels` takes their place with several, and `categories` gives
    single labels a ladder of their own.
    """

    scope: Literal["segment", "document"] = "segment"
    threshold: Probability = 0.7
    action: Literal["allow", "log", "redact", "escalate", "block"] = "block"
    levels: Levels = ()
    categories: dict[str, Levels] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        problems = [*ladder_problems(self.levels, self.categories), *self._said_twice()]
        if problems:
            raise located(problems)
        return self

    def _said_twice(self) -> Iterator[Problem]:
        for key in ("threshold", "action"):
            if self.levels and key in self.model_fields_set:
                yield Problem((key,), f"'levels' says it already: give {key!r} or 'levels', not both")

    @property
    def ladder(self) -> Levels:
        """What holds for every label that has no ladder of its own."""
        return self.levels or (Level(at=self.threshold, action=self.action),)

    @property
    def ladders(self) -> Mapping[str, Levels]:
        """The labels that have one."""
        return self.categories
