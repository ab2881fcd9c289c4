"""From a policy to the guards that enforce it.

Every check lives in `guardrails.checks.<name>`, where the name is the one that policies use, and offers

* `build(spec, env) -> Guard`, and, where it can tell more about a setting than its type does,
* `problems(spec, env) -> Iterable[Problem]`: what is wrong with it, found without loading any model;
* `asks(spec, env) -> Asked`, for guards on a model that may have an early exit (`guardrails.cascade`).

A guard that needs a worker also names, in `servable_specs`, what must run there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from guardrails import reward
from guardrails.guard import AsksJudge, Guard, Stage
from guardrails.verdict import Action
from policies.alignment import JudgeModel
from policies.constitution import load_constitution
from policies.errors import PolicyError, Problem
from policies.guards import GuardBase
from policies.spec import PolicySpec

if TYPE_CHECKING:
    from guardrails.servable import ServableSpec
    from policies.registry import Registry


Asked = Mapping[str, frozenset[str]]
"""By servable, the heads that guards ask of its early exit; none where they need the whole model."""


def _nothing_described(servable: str) -> Any:
    raise LookupError(f"servable {servable!r} is not running")


@dataclass(frozen=True, slots=True)
class GuardEnvironment:
    """What guards are built with.

    `hash_key` keys the digests that the action `hash` writes; `default_on_error` follows a failure where
    a guard says nothing of its own; `describe` is what a running servable says about itself (its labels,
    its longest input); `shared`: what the guards of one stage together ask of each servable's early exit.
    """

    registry: Registry
    hash_key: bytes
    default_on_error: Action = Action.BLOCK
    describe: Callable[[str], Any] = _nothing_described
    shared: Asked = field(default_factory=dict)

    def on_error(self, spec: GuardBase) -> Action:
        """What follows when the guard of `spec` can't answer."""
        return Action[spec.on_error.upper()] if spec.on_error else self.default_on_error

    def heads(self, servable: str, own: frozenset[str]) -> tuple[str, ...]:
        """What a guard asks of an early exit, so that it shares its pass with the others of its stage: none
        where it, or one of them, needs the whole model."""
        shared = self.shared.get(servable, own)
        return tuple(sorted(own | shared)) if own and shared else ()


@runtime_checkable
class NeedsServables(Protocol):
    """A guard with jobs: it says what must run in the workers for it."""

    @property
    def servable_specs(self) -> Mapping[str, ServableSpec]:
        """By the names that its jobs use."""
        ...


@runtime_checkable
class ReadsPrompt(Protocol):
    """A guard for which it matters what a reply answers."""

    @property
    def reads_prompt(self) -> Literal[True]: ...


@runtime_checkable
class Preparable(Protocol):
    """A guard with work that is better done before its first text."""

    def prepare(self) -> None:
        """Do it. Called once its servables run; may take a second."""
        ...


@dataclass(frozen=True, slots=True)
class GuardSet:
    """A policy's guards, in the policy's order, and what must run in the workers for them.

    judges:       the models that guards ask over HTTP.
    reads_prompt: whether a reply is judged together with what it answers.
    """

    input: tuple[Guard, ...] = ()
    output: tuple[Guard, ...] = ()
    servables: Mapping[str, ServableSpec] = field(default_factory=lambda: MappingProxyType({}))
    judges: tuple[JudgeModel, ...] = ()
    reads_prompt: bool = False

    def prepare(self) -> None:
        """Let the guards do what they can before the first request. Not for the event loop."""
        for guard in (*self.input, *self.output):
            if isinstance(guard, Preparable):
                guard.prepare()


def build_guards(policy: PolicySpec, env: GuardEnvironment) -> GuardSet:
    """The guards of `policy`. Loads no model; raises what `problems` would have told, and `ValueError`
    where two guards want different things under one servable's name."""
    env = replace(env, default_on_error=Action[policy.on_error.upper()])
    stages = {
        stage: tuple(build_guard(spec, replace(env, shared=asked(specs, env))) for spec in specs)
        for stage, specs in _stages(policy)
    }
    return GuardSet(
        input=stages["input"],
        output=stages["output"],
        servables=MappingProxyType(collect_servables([*stages["input"], *stages["output"]])),
        judges=tuple(
            dict.fromkeys(
                guard.asks for guards in stages.values() for guard in guards if isinstance(guard, AsksJudge)
            )
        ),
        reads_prompt=any(isinstance(guard, ReadsPrompt) for guard in stages["output"]),
    )


def build_guard(spec: GuardBase, env: GuardEnvironment) -> Guard:
    """One guard, by the check that its spec names."""
    guard: Guard = _check(spec).build(spec, env)
    return guard


def asked(specs: Iterable[GuardBase], env: GuardEnvironment) -> dict[str, frozenset[str]]:
    """What guards that are used together ask of their models' early exits. Nothing where one of them needs
    the whole model: it runs anyway then."""
    together: dict[str, frozenset[str]] = {}
    for spec in specs:
        ask: Callable[[GuardBase, GuardEnvironment], Asked] | None
        ask = getattr(_check(spec), "asks", None)
        for servable, heads in (ask(spec, env) if ask else {}).items():
            others = together.get(servable, heads)
            together[servable] = heads | others if heads and others else frozenset()
    return together


def collect_servables(guards: Iterable[Guard]) -> dict[str, ServableSpec]:
    """What `guards` need in the workers; guards may share a servable, if they mean the same by it."""
    servables: dict[str, ServableSpec] = {}
    for guard in guards:
        specs = guard.servable_specs if isinstance(guard, NeedsServables) else {}
        for name, spec in specs.items():
            if servables.setdefault(name, spec) != spec:
                raise ValueError(
                    f"guard {guard.name!r} wants servable {name!r} with other settings than another guard"
                )
        missing = frozenset() if isinstance(guard, AsksJudge) else guard.servables - specs.keys()
        if missing:
            raise ValueError(
                f"guard {guard.name!r} uses servables it doesn't describe: {', '.join(sorted(missing))}"
            )
    return servables


def problems(policy: PolicySpec, env: GuardEnvironment) -> Iterator[Problem]:
    """What the guards know to be wrong with `policy`, with no model loaded: expressions that don't compile,
    entities, labels and built-in names that don't exist, schemas that are none."""
    for stage, specs in _stages(policy):
        for index, spec in enumerate(specs):
            for problem in guard_problems(spec, env):
                yield Problem((stage, index, *problem.loc), problem.message)
    if policy.rerank is not None:
        for problem in reward.problems(policy.rerank, env.registry):
            yield Problem(("rerank", *problem.loc), problem.message)
    if policy.revise is not None:
        try:
            load_constitution(policy.revise.constitution)
        except PolicyError as error:
            yield Problem(("revise", "constitution"), str(error))


def guard_problems(spec: GuardBase, env: GuardEnvironment) -> Iterable[Problem]:
    """What one guard's check knows to be wrong with its settings; places are relative to the guard."""
    find: Callable[[GuardBase, GuardEnvironment], Iterable[Problem]] | None
    find = getattr(_check(spec), "problems", None)
    return find(spec, env) if find else ()


def _check(spec: GuardBase) -> ModuleType:
    return importlib.import_module(f"guardrails.checks.{spec.guard}")  # type: ignore[attr-defined]  # the discriminator


def _stages(policy: PolicySpec) -> tuple[tuple[Stage, tuple[GuardBase, ...]], ...]:
    return ("input", policy.input), ("output", policy.output)
