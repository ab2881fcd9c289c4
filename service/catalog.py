"""What the gateway serves: policies, each bound to its guards and to the engine that answers for it.

A `Served` is immutable. A reload builds new ones and puts them in place in one step; requests in flight
keep the one they began with.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from guardrails.build import GuardEnvironment, GuardSet, build_guards, collect_servables
from guardrails.chain import InputChain
from guardrails.guard import Guard
from guardrails.runtime import Runtime
from guardrails.servable import ServableSpec
from guardrails.verdict_cache import VerdictCache
from policies.constraints import to_wire
from policies.load import LoadedPolicy
from policies.references import all_names, judges
from policies.registry import Pinned
from policies.spec import PolicySpec
from service.alignment.build import StrategyError, strategy_for
from service.alignment.strategy import Means, Strategy
from service.auth import Caller
from service.engine.engine import Engine
from service.engine.users import Users
from service.engines import Engines, Target
from service.generation import CHECKPOINT
from service.http import Header
from service.judges import Judges
from service.openai.errors import ModelNotFound
from service.redaction import build_redactors
from service.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Served:
    """One policy, ready to answer.

    checkpoints: what each checkpoint's name in the policy means, as `name@digest`.
    users:       where a request that is bound to this policy is counted for as long as it lasts; without
                 the model's own where versions may mix (`service.alignment.versions`).
    judges:      the engines that its guards ask, and that are no policy's own.
    """

    policy: LoadedPolicy
    target: Target
    guards: GuardSet
    chain: InputChain
    headers: tuple[Header, ...] = field(repr=False)
    constraints: str = ""
    strategy: Strategy | None = None
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    users: tuple[Users, ...] = ()
    redactors: tuple[Guard, ...] = ()  # for texts that are kept
    judges: tuple[Engine, ...] = ()

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def spec(self) -> PolicySpec:
        return self.policy.spec

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All that it asks."""
        return (self.target.engine, *(self.strategy.engines if self.strategy else ()), *self.judges)

    def enter(self) -> None:
        """A request is bound to this from now on; nothing of it is closed before `leave`."""
        for users in self.users:
            users.enter()

    def leave(self) -> None:
        """The request has ended."""
        for users in self.users:
            users.leave()

    @property
    def patience(self) -> float:
        """The shortest time, in seconds, within which a guard worker must have answered."""
        guards = (*self.guards.input, *self.guards.output)
        ours = self.guards.servables.keys()
        return min((guard.deadline for guard in guards if guard.servables & ours), default=math.inf)

    @property
    def guarded(self) -> bool:
        """Whether anything is examined or held back at all."""
        if self.guards.input or self.guards.output:
            return True
        return self.spec.streaming == "buffer" or self.spec.keeps_text


Change = tuple[Served | None, Served]
"""A policy as it is served, if it is, and as it is about to be."""

Gate = Callable[[Sequence[Change]], Awaitable[None]]
"""What must hold of the policies that are about to change. Raises where it doesn't."""


class Catalog:
    """Policies by name, and what the checkpoints' aliases in them are held to mean.

    An alias is looked up when a policy first names it, and from then on means that here (`pins`), until
    `replace` is told otherwise: what the alias table says by then has to be verified first.
    """

    def __init__(
        self,
        environment: GuardEnvironment,
        runtime: Runtime,
        engines: Engines,
        cache: VerdictCache | None,
        metrics: Metrics,
        state_dir: Path,
    ) -> None:
        self._environment = environment
        self._runtime = runtime
        self._engines = engines
        self._cache = cache
        self._metrics = metrics
        self.runner = Judges(runtime, engines, lambda name: self.get(name).target)
        self._means = Means(engines, self.runner, environment.registry, metrics, self.get, state_dir)
        self._served: Mapping[str, Served] = {}
        self._tenants: Mapping[tuple[str, str], Served] = {}  # by a key's name and a policy's
        self._policies: Mapping[str, LoadedPolicy] = {}
        self._changing = asyncio.Lock()
        self.controls: Mapping[str, str] = {}  # experiments, and the policies of their control arms
        self.pins: Mapping[str, str] = {}
        self.held: asyncio.Event | None = None  # who asks waits for it, where there is one

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Nobody is bound to a policy within the block: requests wait for its end."""
        self.held = asyncio.Event()
        try:
            yield
        finally:
            self.held.set()
            self.held = None

    def get(self, name: str, caller: Caller | None = None) -> Served:
        """The policy of this name, as `caller` has it; of an experiment's name, the control arm's.

        Raises `ModelNotFound`.
        """
        served = self._served.get(name) or self._served.get(self.controls.get(name, ""))
        if served is None or served.policy.tenant is not None:
            raise ModelNotFound(name, [served.name for served in self.all()])
        if caller is not None and self._tenants:
            return self._tenants.get((caller.name, served.name), served)
        return served

    def get_exactly(self, name: str) -> Served:
        """The policy of this name, a tenant's variant (`standard#acme`) too. Raises `ModelNotFound`."""
        return self._served.get(name) or self.get(name)

    async def successor(self, served: Served) -> Served:
        """What the policy is now, once nobody is held back; as it was, where it has been taken away."""
        while self.held is not None:
            await self.held.wait()
        tenant = served.policy.tenant
        return next(
            (one for one in self._served.values() if (one.name, one.policy.tenant) == (served.name, tenant)),
            served,
        )

    def values(self) -> Iterable[Served]:
        """Every policy, in no order."""
        return self._served.values()

    def all(self) -> list[Served]:
        """Every policy, by name, without the tenants' variants."""
        return [served for _, served in sorted(self._served.items()) if served.policy.tenant is None]

    def variants(self) -> list[Served]:
        """The tenants' own."""
        return [served for _, served in sorted(self._served.items()) if served.policy.tenant is not None]

    async def replace(
        self,
        policies: Mapping[str, LoadedPolicy] | None = None,
        *,
        pins: Mapping[str, str] | None = None,
        gate: Gate | None = None,
    ) -> None:
        """Serve exactly these from now on, once their guards and engines are up.

        policies: None for those that are served already.
        pins:     aliases that mean something else from now on.
        gate:     is shown the policies that change once all is loaded, before they serve anybody.

        Where anything fails, the error is raised and everything stays as it was. Raises `StrategyError` for a
        judge that isn't there, and what guards, engines, workers and the gate raise.
        """
        async with self._changing:
            policies = self._policies if policies is None else policies
            registry = await asyncio.to_thread(self._view, policies, pins or {})
            try:
                fresh = {name: await self._bind(name, policy, registry) for name, policy in policies.items()}
                _check_judges(fresh)
                targets = [served.target for served in fresh.values()]
                starting = asyncio.gather(
                    self._runtime.ensure(_servables(fresh.values())), self._engines.start(targets)
                )
                try:
                    await starting
                except BaseException:
                    starting.cancel()
                    raise
                await asyncio.to_thread(_prepare, list(fresh.values()))
                if gate is not None:
                    known = {name: self._served.get(name) for name in fresh}
                    await gate(
                        [(known[name], served) for name, served in fresh.items() if known[name] is not served]
                    )
                if self._cache is not None and _judges_moved(self._served, fresh):
                    self._cache.clear()
                self._served, self._tenants = fresh, _by_key(fresh.values())
                self._policies, self.pins = policies, registry.pins
            except BaseException:
                # What was loaded for those who now don't come is not to stay in the workers.
                with suppress(RuntimeError):  # where the gateway ends, there are none
                    await self._runtime.ensure(_servables(self._served.values()))
                raise
            finally:
                now = self._served.values()
                self._engines.retire(
                    [engine for served in now for engine in served.engines], [served.target for served in now]
                )
            self._publish()

    def _view(self, policies: Mapping[str, LoadedPolicy], pins: Mapping[str, str]) -> Pinned:
        """The registry in which every alias that these policies name means what it is to mean."""
        registry = self._environment.registry
        aliases = registry.aliases() if registry.root.is_dir() else {}
        held = {**aliases, **self.pins, **pins}
        named = {name for policy in policies.values() for name in all_names(policy.spec)}
        return Pinned(registry.root, {name: held[name] for name in sorted(named & held.keys())})

    async def _bind(self, name: str, policy: LoadedPolicy, registry: Pinned) -> Served:
        known = self._served.get(name)
        target = self._engines.target(policy.spec, registry)
        names = all_names(policy.spec)
        checkpoints = await asyncio.to_thread(lambda: {name: registry.resolve(name).ref for name in names})
        same = known is not None and known.policy == policy and known.target == target
        if known is not None and same and known.checkpoints == checkpoints:
            return known
        headers = (
            (b"x-keel-policy", f"{policy.name}@{policy.digest[:12]}".encode()),
            (CHECKPOINT, target.checkpoint.encode("ascii", "replace")),
        )
        environment = replace(self._environment, registry=registry)
        guards = await asyncio.to_thread(build_guards, policy.spec, environment)
        chain = InputChain(
            guards.input, self.runner, self._cache, policy_digest=policy.digest, roles=policy.spec.roles
        )
        constraints = to_wire(policy.spec.constraints) if policy.spec.constraints else ""
        strategy = strategy_for(policy.spec, replace(self._means, registry=registry))
        asked = tuple(self.runner.bind(one.upstream) for one in guards.judges if one.upstream is not None)
        helping = (*(strategy.engines if strategy else ()), *asked)
        others = {engine.users for engine in helping} - set(target.users)
        bound = target.users if policy.spec.model.mixed == "refuse" else ()
        redactors: tuple[Guard, ...] = ()
        if policy.spec.keeps_text:
            redactors = await asyncio.to_thread(build_redactors, policy.spec, guards, self._environment)
        return Served(
            policy,
            target,
            guards,
            chain,
            headers,
            constraints,
            strategy,
            checkpoints,
            (*bound, *others),
            redactors,
            asked,
        )

    def _publish(self) -> None:
        self._metrics.policy_info.clear()
        self._metrics.checkpoint_info.clear()
        for served in self._served.values():
            self._metrics.policy_info.labels(served.name, served.policy.digest).set(1)
            name, _, digest = served.target.checkpoint.partition("@")
            self._metrics.checkpoint_info.labels(name, digest).set(1)


def _servables(policies: Iterable[Served]) -> dict[str, ServableSpec]:
    """All that must run in the guard workers for them."""
    servables: dict[str, ServableSpec] = {}
    for served in policies:
        servables.update(served.guards.servables)
        servables.update(collect_servables(served.redactors))
        if served.strategy is not None:
            servables.update(served.strategy.servables)
    return servables


def _by_key(policies: Iterable[Served]) -> dict[tuple[str, str], Served]:
    found = {}
    for served in policies:
        for key in served.policy.tenant.keys if served.policy.tenant else ():
            found[key, served.name] = served
    return found


def _check_judges(policies: Mapping[str, Served]) -> None:
    """Raises `StrategyError` where a policy's judge is a policy that there isn't."""
    for name, served in policies.items():
        for _, judge in judges(served.spec):
            if judge.policy is not None and judge.policy not in policies:
                known = ", ".join(sorted(policies))
                missing = f"its judge is the policy {judge.policy!r}, which isn't there"
                raise StrategyError(f"policy {name!r}: {missing}; there are: {known}")


def _judges_moved(before: Mapping[str, Served], after: Mapping[str, Served]) -> bool:
    """Whether a policy whose model judges for others has another model now: its verdicts are out of date."""
    asked = {
        judge.policy
        for served in after.values()
        for judge in served.guards.judges
        if judge.policy is not None
    }
    return any(name in before and before[name].target != after[name].target for name in asked)


def _prepare(policies: Iterable[Served]) -> None:
    for served in policies:
        served.guards.prepare()
        GuardSet(output=served.redactors).prepare()
