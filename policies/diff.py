"""What differs between two policies, by meaning: guards are told apart by their titles, not their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from policies.guards import GuardBase
from policies.spec import PolicySpec


class Difference(NamedTuple):
    """At `place`, one policy says `before` and the other `after`; None where one says nothing."""

    place: str
    before: Any
    after: Any


def differences(one: PolicySpec, other: PolicySpec) -> list[Difference]:
    """Everything that differs, defaults included, by place; a guard that only moved is told as an order."""
    found = list(_mapping("", _settings(one), _settings(other)))
    for stage in ("input", "output"):
        found += _guards(stage, _titled(getattr(one, stage)), _titled(getattr(other, stage)))
    return found


def _settings(spec: PolicySpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude={"input", "output"})


def _titled(guards: tuple[GuardBase, ...]) -> dict[str, GuardBase]:
    return {guard.title: guard for guard in guards}


def _guards(stage: str, one: Mapping[str, GuardBase], other: Mapping[str, GuardBase]) -> Iterator[Difference]:
    for title in dict.fromkeys([*one, *other]):
        before, after = one.get(title), other.get(title)
        place = f"{stage}.{title}"
        if before is not None and after is not None:
            yield from _mapping(place, before.model_dump(mode="json"), after.model_dump(mode="json"))
        else:
            yield Difference(place, _short(before), _short(after))
    if one.keys() == other.keys() and list(one) != list(other):
        yield Difference(f"{stage} (order)", list(one), list(other))


def _short(guard: GuardBase | None) -> Any:
    """A guard as its author would write it."""
    if guard is None:
        return None
    kind = guard.guard  # type: ignore[attr-defined]  # every subclass has the discriminator
    return {"guard": kind} | guard.model_dump(mode="json", exclude_defaults=True)


def _mapping(place: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Difference]:
    for key in dict.fromkeys([*one, *other]):
        before, after = one.get(key), other.get(key)
        where = f"{place}.{key}" if place else key
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _mapping(where, before, after)
        else:
            yield Difference(where, before, after)
