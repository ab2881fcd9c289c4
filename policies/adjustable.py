"""What a policy's owner lets tenants change (see `policies.tenants`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, JsonValue, model_validator

from policies.base import Frozen
from policies.errors import Loc

OWNERS = frozenset({"name", "adjustable"})
"""Settings that no tenant can be given."""


class Adjustable(Frozen):
    """One setting, and how far it may be changed.

    `min` and `max` bound a number, `one_of` lists the values there may be, and `at_least` is what a list
    must go on holding. Without any of them, every value that the setting takes is allowed.
    """

    setting: Annotated[str, Field(pattern=r"^[a-z_]+(\.[A-Za-z0-9._-]+)*$")]
    min: float | None = None
    max: float | None = None
    one_of: Annotated[tuple[JsonValue, ...], Field(min_length=1)] | None = None
    at_least: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.setting.partition(".")[0] in OWNERS:
            raise ValueError(f"{self.setting!r} is the owner's: no tenant can change it")
        bounded = self.min is not None or self.max is not None
        if sum([bounded, self.one_of is not None, self.at_least is not None]) > 1:
            raise ValueError(
                "give 'min' and 'max', or 'one_of', or 'at_least': they are for different settings"
            )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"no number is at least {self.min:g} and at most {self.max:g}")
        return self

    def limits(self) -> Iterator[tuple[Loc, JsonValue]]:
        """The values that this rule names, and where."""
        for key in ("min", "max"):
            bound = getattr(self, key)
            if bound is not None:
                yield (key,), int(bound) if bound == int(bound) else bound
        for index, value in enumerate(self.one_of or ()):
            yield ("one_of", index), value
        if self.at_least is not None:
            yield ("at_least",), list(self.at_least)

    def nearest(self, value: JsonValue) -> JsonValue:
        """What is allowed and comes nearest to `value`; None where nothing is near."""
        if self.at_least is not None:
            held = value if isinstance(value, list) else []
            return [*held, *(one for one in self.at_least if one not in held)]
        bounded = isinstance(value, int | float) and not isinstance(value, bool)
        if not bounded or (self.min is None and self.max is None):
            return value if self.objection(value) is None else None
        assert isinstance(value, int | float)  # noqa: S101 - seen above
        low = value if self.min is None else max(value, self.min)
        return low if self.max is None else min(low, self.max)

    def objection(self, value: JsonValue) -> str | None:
        """Why `value` is not allowed; None where it is."""
        if self.one_of is not None and value not in self.one_of:
            return f"must be one of {', '.join(map(str, self.one_of))}, as the policy's owner says"
        if self.at_least is not None:
            held = value if isinstance(value, list) else []
            missing = [one for one in self.at_least if one not in held]
            return f"must hold {', '.join(missing)} too, as the policy's owner says" if missing else None
        if self.min is None and self.max is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            return "must be a number"
        if self.min is not None and value < self.min:
            return f"must be at least {self.min:g}, as the policy's owner says"
        if self.max is not None and value > self.max:
            return f"must be at most {self.max:g}, as the policy's owner says"
        return None
