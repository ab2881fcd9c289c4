"""A promotion or a rollback where no gateway runs: verified all the same, then only the alias is moved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from policies.examine import Demands, examine
from policies.registry import Registry, RegistryError


def swap_unserved(
    registry: Registry, what: str, body: Mapping[str, object], max_rank: int, tell: Callable[[str, str], None]
) -> dict[str, object]:
    """As the admin API answers: `alias`, `outcome`, `ref`, `reason`, `seconds`; a refusal is one."""
    began = time.perf_counter()
    alias = str(body["alias"])
    outcome, reason, former = "refused", "", None
    try:
        former = registry.aliases().get(alias)
        outcome = _swap(registry, what, body, max_rank, tell)
    except RegistryError as error:
        reason = str(error)
    ref = former if outcome in ("refused", "checked") else registry.aliases()[alias]
    seconds = round(time.perf_counter() - began, 3)
    return {"alias": alias, "outcome": outcome, "ref": ref, "reason": reason, "seconds": seconds}


def _swap(
    registry: Registry, what: str, body: Mapping[str, object], max_rank: int, tell: Callable[[str, str], None]
) -> str:
    alias = str(body["alias"])
    former = registry.aliases().get(alias)
    if what == "rollback":
        before = registry.previous(alias)
        registry.point(alias, before.ref, how="rollback")
        tell("alias", f"{alias} means {before.ref}")
        return "rolled_back"
    new = registry.resolve(str(body["ref"]))
    if new.ref == former:
        return "unchanged"
    allow = body["allow"] if isinstance(body["allow"], list) else []
    reference = registry.resolve(former) if former else None
    examine(registry, new, Demands(reference, frozenset(allow), max_rank), tell)
    tell("canary", "not asked: no gateway runs; whoever goes over to it asks")
    if body["dry_run"]:
        return "checked"
    registry.point(alias, new.ref, how="promote", allow=tuple(allow))
    tell("alias", f"{alias} means {new.ref}")
    return "promoted"
