"""What the gateway serves: policies, each bound to its guards and to the engine that answers for it.

A `Served` is immutable. A reload builds new ones and puts them in place in one step; requests in flight
keep the one they began with.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guardrails.build import GuardEnvironment, GuardSet, build_guards
from guardrails.chain import InputChain
from guardrails.runtime import Runtime
from guardrails.servable import ServableSpec
from guardrails.verdict_cache import VerdictCache
from policies.alignment import JudgePolicy
from policies.constraints import to_wire
from policies.load import LoadedPolicy
from policies.spec import PolicySpec
from service.alignment.build import StrategyError, strategy_for
from service.alignment.strategy import Means, Strategy
from service.auth import Caller
from service.engine.engine import Engine
from service.engines import Engines
from service.http import Header
from service.openai.errors import ModelNotFound
from service.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Target:
    """An engine, the name that the model has there, and what exactly is loaded, for people and records."""

    engine: Engine
    model: str
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Served:
    """One policy, ready to answer."""

    policy: LoadedPolicy
    target: Target
    guards: GuardSet
    chain: InputChain
    headers: tuple[Header, ...] = field(repr=False)
    constraints: str = ""
    strategy: Strategy | None = None

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def spec(self) -> PolicySpec:
        return self.policy.spec

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All that it asks."""
        return (self.target.engine, *(self.strategy.engines if self.strategy else ()))

    @property
    def patience(self) -> float:
        """The shortest time, in seconds, within which a guard worker must have answered."""
        guards = (*self.guards.input, *self.guards.output)
        return min((guard.deadline for guard in guards if guard.servables), default=math.inf)

    @property
    def guarded(self) -> bool:
        """Whether anything is examined or held back at all."""
        return bool(self.guards.input or self.guards.output) or self.spec.streaming == "buffer"


class Catalog:
    """Policies by name."""

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
        self._means = Means(engines, runtime, environment.registry, metrics, self.get, state_dir)
        self._served: Mapping[str, Served] = {}
        self._tenants: Mapping[tuple[str, str], Served] = {}  # by a key's name and a policy's
        self._changing = asyncio.Lock()
        self.controls: Mapping[str, str] = {}  # experiments, and the policies of their control arms

    def get(self, name: str, caller: Caller | None = None) -> Served:
        """The policy of this name, as `caller` has it; of an experiment's name, the control arm's.

        Raises `ModelNotFound`.
        """
        served = self._served.get(name) or self._served.get(self.controls.get(name, ""))
        if served is None or served.policy.tenant is not None:
            raise ModelNotFound(name, [served.name for served in self.all()])
        if caller is not None and self._tenants:
            return self._tenants.get((caller.name, name), served)
        return served

    def values(self) -> Iterable[Served]:
        """Every policy, in no order."""
        return self._served.values()

    def all(self) -> list[Served]:
        """Every policy, by name, without the tenants' variants."""
        return [served for _, served in sorted(self._served.items()) if served.policy.tenant is None]

    def variants(self) -> list[Served]:
        """The tenants' own."""
        return [served for _, served in sorted(self._served.items()) if served.policy.tenant is not None]

    async def replace(self, policies: Mapping[str, LoadedPolicy]) -> None:
        """Serve exactly these from now on, once their guards and engines are up.

        Where anything fails, the error is raised and everything stays as it was. Raises `StrategyError` for a
        judge that isn't there, and what guards, engines and workers raise.
        """
        async with self._changing:
            try:
                fresh = {name: await self._bind(name, policy) for name, policy in policies.items()}
                _check_judges(fresh)
                servables: dict[str, ServableSpec] = {}
                for served in fresh.values():
                    servables.update(served.guards.servables)
                    if served.strategy is not None:
                        servables.update(served.strategy.servables)
                starting = asyncio.gather(self._runtime.ensure(servables), self._engines.start())
                try:
                    await starting
                except BaseException:
                    starting.cancel()
                    raise
                await asyncio.to_thread(_prepare, [served.guards for served in fresh.values()])
                self._served, self._tenants = fresh, _by_key(fresh.values())
            finally:
                self._engines.retire(
                    [engine for served in self._served.values() for engine in served.engines]
                )
            self._publish()

    async def _bind(self, name: str, policy: LoadedPolicy) -> Served:
        known = self._served.get(name)
        engine, model, checkpoint = self._engines.engine_for(policy.spec)
        if known is not None and known.policy == policy and known.target.engine is engine:
            return known
        headers = (
            (b"x-keel-policy", f"{policy.name}@{policy.digest[:12]}".encode()),
            (b"x-keel-checkpoint", checkpoint.encode("ascii", "replace")),
        )
        guards = await asyncio.to_thread(build_guards, policy.spec, self._environment)
        chain = InputChain(
            guards.input, self._runtime, self._cache, policy_digest=policy.digest, roles=policy.spec.roles
        )
        constraints = to_wire(policy.spec.constraints) if policy.spec.constraints else ""
        strategy = strategy_for(policy.spec, self._means)
        return Served(
            policy, Target(engine, model, checkpoint), guards, chain, headers, constraints, strategy
        )

    def _publish(self) -> None:
        self._metrics.policy_info.clear()
        self._metrics.checkpoint_info.clear()
        for served in self._served.values():
            self._metrics.policy_info.labels(served.name, served.policy.digest).set(1)
            name, _, digest = served.target.checkpoint.partition("@")
            self._metrics.checkpoint_info.labels(name, digest).set(1)


def _by_key(policies: Iterable[Served]) -> dict[tuple[str, str], Served]:
    found = {}
    for served in policies:
        for key in served.policy.tenant.keys if served.policy.tenant else ():
            found[key, served.name] = served
    return found


def _check_judges(policies: Mapping[str, Served]) -> None:
    """Raises `StrategyError` where a policy's judge is a policy that there isn't."""
    for name, served in policies.items():
        judge = served.spec.revise.judge if served.spec.revise else None
        if isinstance(judge, JudgePolicy) and judge.policy not in policies:
            known = ", ".join(sorted(policies))
            missing = f"its judge is the policy {judge.policy!r}, which isn't there"
            raise StrategyError(f"policy {name!r}: {missing}; there are: {known}")


def _prepare(guards: Iterable[GuardSet]) -> None:
    for guard_set in guards:
        guard_set.prepare()
