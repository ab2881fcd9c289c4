"""What the gateway serves: policies, each bound to its guards and to the engine that answers for it.

A `Served` is immutable. A reload builds new ones and puts them in place in one step; requests in flight
keep the one they began with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from guardrails.build import GuardEnvironment, GuardSet, build_guards
from guardrails.runtime import Runtime, ServableSpec
from policies.load import LoadedPolicy
from policies.spec import PolicySpec
from service.engine.client import Headers, Reply
from service.engine.event_stream import EventStream
from service.http import Header
from service.openai.errors import ModelNotFound
from service.telemetry.metrics import Metrics


class Backend(Protocol):
    """What answers: an upstream, several behind one door, or a managed vLLM."""

    async def complete(
        self, path: str, body: bytes | None, headers: Headers | None = None, *, method: str = "POST"
    ) -> Reply:
        """The whole reply. Raises `UpstreamError`."""
        ...

    async def open_stream(
        self, path: str, body: bytes, headers: Headers | None = None, *, raw: bool = False
    ) -> EventStream:
        """The reply as a stream, once it has begun. Raises `UpstreamError`."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """An engine, the name that the model has there, and what exactly is loaded, for people and records."""

    backend: Backend
    model: str
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Served:
    """One policy, ready to answer."""

    policy: LoadedPolicy
    target: Target
    guards: GuardSet
    headers: tuple[Header, ...] = field(repr=False)

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def spec(self) -> PolicySpec:
        return self.policy.spec

    @property
    def guarded(self) -> bool:
        """Whether anything is examined at all."""
        return bool(self.guards.input or self.guards.output)


class Catalog:
    """Policies by name."""

    def __init__(
        self,
        environment: GuardEnvironment,
        runtime: Runtime,
        metrics: Metrics,
        target_for: Callable[[PolicySpec], Target],
    ) -> None:
        """`target_for` finds the engine of a policy; raises `LookupError` where there is none."""
        self._environment = environment
        self._runtime = runtime
        self._metrics = metrics
        self._target_for = target_for
        self._served: Mapping[str, Served] = {}

    def get(self, name: str) -> Served:
        """The policy of this name. Raises `ModelNotFound`."""
        served = self._served.get(name)
        if served is None:
            raise ModelNotFound(name, sorted(self._served))
        return served

    def all(self) -> list[Served]:
        """Every policy, by name."""
        return [served for _, served in sorted(self._served.items())]

    async def replace(self, policies: Mapping[str, LoadedPolicy]) -> None:
        """Serve exactly these from now on. Where anything fails, everything stays as it was."""
        fresh = {name: self._bind(policy) for name, policy in policies.items()}
        servables: dict[str, ServableSpec] = {}
        for served in fresh.values():
            servables.update(served.guards.servables)
        await self._runtime.ensure(servables)
        self._served = fresh
        self._publish()

    def _bind(self, policy: LoadedPolicy) -> Served:
        known = self._served.get(policy.name)
        if known is not None and known.policy.digest == policy.digest:
            return known
        target = self._target_for(policy.spec)
        headers = (
            (b"x-keel-policy", f"{policy.name}@{policy.digest[:12]}".encode()),
            (b"x-keel-checkpoint", target.checkpoint.encode("latin-1", "replace")),
        )
        return Served(policy, target, build_guards(policy.spec, self._environment), headers)

    def _publish(self) -> None:
        self._metrics.policy_info.clear()
        self._metrics.checkpoint_info.clear()
        for served in self._served.values():
            self._metrics.policy_info.labels(served.name, served.policy.digest).set(1)
            name, _, digest = served.target.checkpoint.partition("@")
            self._metrics.checkpoint_info.labels(name, digest).set(1)
