"""From a policy to the guards that enforce it.

Every check lives in `guardrails.checks.<name>`, where the name is the one that policies use, and offers

* `build(spec, env) -> Guard`, and, where it can tell more about a setting than its type does,
* `problems(spec, env) -> Iterable[Problem]`: what is wrong with it, found without loading any model.

A guard that needs a worker also names, in `servable_specs`, what must run there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from guardrails.guard import Guard, Stage
from guardrails.verdict import Action
from policies.errors import Problem
from policies.spec import GuardBase, PolicySpec

if TYPE_CHECKING:
    from guardrails.runtime import ServableSpec
    from policies.registry import Registry


def _nothing_described(servable: str) -> Any:
    raise LookupError(f"servable {servable!r} is not running")


@dataclass(frozen=True, slots=True)
class GuardEnvironment:
    """What guards are built with.

    `hash_key` keys the digests that the action `hash` writes; `default_on_error` follows a failure where
    a guard says nothing of its own; `describe` is what a running servable says about itself (its labels,
    its longest input).
    """

    registry: Registry
    hash_key: bytes
    default_on_error: Action = Action.BLOCK
    describe: Callable[[str], Any] = _nothing_described

    def on_error(self, spec: GuardBase) -> Action:
        """What follows when the guard of `spec` can't answer."""
        return Action[spec.on_error.upper()] if spec.on_error else self.default_on_error


@runtime_checkable
class NeedsServables(Protocol):
    """A guard with jobs: it says what must run in the workers for it."""

    @property
    def servable_specs(self) -> Mapping[str, ServableSpec]:
        """By the names that its jobs use."""
        ...
