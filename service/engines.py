"""The engines behind the policies: upstreams named by policies or on the command line, and managed vLLMs.

Policies that name the same upstreams, or the same checkpoint, share one engine, and with it its bounds, its
connections and what it knows of their health. Adapters share the engine of their base.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from policies.base import Upstream
from policies.examine import speaker
from policies.registry import Registry, ResolvedCheckpoint
from policies.spec import PolicySpec
from service.engine.config import PoolLimits, TimeLimits, UpstreamConfig
from service.engine.engine import Engine
from service.engine.errors import UpstreamError
from service.engine.observer import EngineObserver
from service.engine.users import Users
from service.engine.vllm_command import AdapterLimits, VllmConfig, on_cpu
from service.engine.vllm_process import ManagedVllm
from service.settings import Engine as EngineSettings
from service.settings import Settings

logger = structlog.get_logger("keel.engines")

Progress = Callable[[str], None]
METRICS_TIMEOUT = 2.0  # seconds
IN_FLIGHT = 256  # per upstream, where the settings don't say
CPU_IN_FLIGHT = 64  # beyond it, vLLM on a CPU answers no more of them a second, only later


class Managed(NamedTuple):
    """A vLLM of our own: the checkpoint that it runs, and whether it takes adapters."""

    ref: str
    adapters: bool


Key = tuple[Upstream, ...] | Managed


class EngineError(Exception):
    """A policy's engine can't be had; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Target:
    """An engine, the name that the model has there, and what exactly is loaded, for people and records.

    adapter: the folder of the adapter that answers, where it is one.
    """

    engine: Engine
    model: str
    checkpoint: str
    adapter: Path | None = None

    @property
    def users(self) -> tuple[Users, ...]:
        """Where a request that is bound to this is counted."""
        if self.adapter is None:
            return (self.engine.users,)
        return (self.engine.users, self.engine.adapters.users(self.model))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Nothing of it is closed within the block."""
        users = self.users
        for one in users:
            one.enter()
        try:
            yield
        finally:
            for one in users:
                one.leave()


class Engines:
    """All engines of one gateway, by what they serve."""

    def __init__(self, settings: Settings, registry: Registry, observer: EngineObserver) -> None:
        self._settings = settings
        self._registry = registry
        self._observer = observer
        self._engines: dict[Key, Engine] = {}
        self._started: set[Key] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._wanted: set[tuple[Engine, str]] = set()
        self.progress: Progress = lambda _: None

    def target(self, spec: PolicySpec, registry: Registry | None = None) -> Target:
        """What answers for a policy, with `registry` for what its checkpoint means.

        Raises `EngineError`, or `RegistryError` for a checkpoint that isn't there.
        """
        targets = spec.model.targets or ((self._settings.upstream,) if self._settings.upstream else ())
        if targets:
            model = targets[0].model
            if any(target.model != model for target in targets):
                raise EngineError(f"policy {spec.name!r}: its upstreams must all use one name for the model")
            return Target(self._upstreams(targets), model, model)
        registry = registry or self._registry
        checkpoint = registry.resolve(spec.model.checkpoint or "")
        base = speaker(registry, checkpoint)
        engine = self._managed(base, adapter=checkpoint is not base)
        if checkpoint is base:
            return Target(engine, engine.child.name if engine.child else base.name, base.ref)
        return Target(engine, checkpoint.ref, checkpoint.ref, checkpoint.path)

    def server(self, upstream: Upstream) -> Engine:
        """The engine of a server that is no policy's model: a judge's, or a reward model's."""
        return self._upstreams((upstream,))

    def _upstreams(self, targets: tuple[Upstream, ...]) -> Engine:
        if targets not in self._engines:
            configs = [UpstreamConfig(t.base_url, t.base_url, api_key_env=t.api_key_env) for t in targets]
            self._engines[targets] = Engine(
                configs,
                times=_times(self._settings.engine),
                limits=_limits(self._settings.engine),
                observer=self._observer,
            )
        return self._engines[targets]

    def _managed(self, base: ResolvedCheckpoint, *, adapter: bool) -> Engine:
        settings = self._settings.engine
        taking = Managed(base.ref, adapters=True)
        key = taking if adapter or settings.adapters or taking in self._engines else Managed(base.ref, False)
        if key not in self._engines:
            config = VllmConfig(
                base.path,
                # Names are labels too: the two servers of one checkpoint must be told apart.
                f"{base.name}+adapters" if key.adapters else base.name,
                adapters=AdapterLimits(settings.max_adapters, settings.max_adapter_rank)
                if key.adapters
                else None,
                reloadable=settings.swap == "in_place",
                arguments=settings.vllm_args,
                start_seconds=settings.start_timeout_s,
            )
            child = ManagedVllm(
                config,
                observer=self._observer,
                on_phase=lambda phase: self.progress(f"{base.name}: {phase}"),
            )
            self._engines[key] = Engine.managed(
                child,
                times=_times(settings),
                limits=_limits(settings, CPU_IN_FLIGHT if on_cpu(config.device) else IN_FLIGHT),
                observer=self._observer,
            )
        return self._engines[key]

    def runs(self, ref: str, adapters: bool) -> bool:
        """Whether a vLLM that runs already can answer for this checkpoint, or take adapters over it."""
        keys = (Managed(ref, True),) if adapters else (Managed(ref, True), Managed(ref, False))
        return any(key in self._started for key in keys)

    def rename(self, old: str, new: str) -> None:
        """What runs `old` has read the weights of `new`, and answers for that from now on."""
        for adapters in (True, False):
            key, other = Managed(old, adapters), Managed(new, adapters)
            if key in self._engines and other not in self._engines:
                self._engines[other] = self._engines.pop(key)
                self._started.discard(key)
                self._started.add(other)

    async def start(self, targets: Collection[Target] = ()) -> None:
        """Start what isn't started, load the adapters of `targets`, and wait until all of it serves.

        Raises `VllmFailed`, `RegistryError` and `UpstreamError`.
        """
        fresh = [key for key in self._engines if key not in self._started]
        for key in fresh:
            if isinstance(key, Managed):
                self.progress(f"{key.ref.partition('@')[0]}: verifying the checkpoint")
                await asyncio.to_thread(self._verify, key.ref)
            self._started.add(key)
            await self._engines[key].start()
        for key in fresh:
            await self._engines[key].wait_ready()
        self._wanted |= {(target.engine, target.model) for target in targets if target.adapter}
        for target in targets:
            if target.adapter is not None and target.model not in target.engine.adapters.loaded:
                await asyncio.to_thread(self._verify, target.checkpoint)
                await target.engine.adapters.load(target.model, target.adapter)

    def _verify(self, ref: str) -> None:
        self._registry.verify(self._registry.resolve(ref))

    def retire(self, engines: Collection[Engine], targets: Collection[Target]) -> None:
        """Let engines and adapters that nothing uses any more finish their requests, and close them.

        A request is bounded in time, so what is waited for ends.
        """
        self._wanted = {(target.engine, target.model) for target in targets if target.adapter}
        for key, engine in list(self._engines.items()):
            if engine in engines:
                for name in engine.adapters.loaded:
                    if (engine, name) not in self._wanted:
                        self._behind(self._unload(engine, name))
                continue
            del self._engines[key]
            if key in self._started:
                self._started.discard(key)
                self._behind(self._close(engine))

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _close(self, engine: Engine) -> None:
        drain = 0.0  # where the gateway ends meanwhile
        try:
            await engine.users.gone(self._settings.engine.total_timeout_s)
            drain = self._settings.drain_timeout_s
        finally:
            await engine.aclose(drain=drain)

    async def _unload(self, engine: Engine, name: str) -> None:
        await engine.adapters.users(name).gone(self._settings.engine.total_timeout_s)
        if (engine, name) in self._wanted:
            return  # it came back meanwhile
        try:
            await engine.adapters.unload(name)
        except UpstreamError as error:
            logger.warning("adapter_not_unloaded", adapter=name, error=str(error))

    async def stop(self) -> None:
        """Stop all; what is still in flight is cut."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.gather(*(self._engines[key].aclose() for key in self._started))

    def unready(self) -> dict[str, str]:
        """Managed engines that don't serve now, with their state. Upstreams are others' to keep up.

        A gateway whose upstream is down still answers, with an error; restarting it would mend nothing.
        """
        reasons: dict[str, str] = {}
        for engine in self._engines.values():
            if engine.child is not None and not engine.child.ready:
                reasons[f"vllm {engine.child.name}"] = engine.child.state
        return reasons

    async def metrics(self) -> list[bytes]:
        """The managed engines' own expositions."""
        pages = []
        for engine in self._engines.values():
            if engine.child is None or not engine.child.ready:
                continue
            try:
                async with asyncio.timeout(METRICS_TIMEOUT):
                    reply = await engine.complete("/metrics", None, method="GET")
            except (UpstreamError, TimeoutError):
                continue
            pages.append(_vllm_only(reply.body))
        return pages


def _vllm_only(page: bytes) -> bytes:
    """The `vllm:*` families of an exposition; the child's process metrics would clash with ours."""
    lines = []
    for line in page.splitlines(keepends=True):
        name = line.split(b" ", 3)[2] if line.startswith((b"# HELP ", b"# TYPE ")) else line
        if name.startswith(b"vllm:"):
            lines.append(line)
    return b"".join(lines)


def _times(settings: EngineSettings) -> TimeLimits:
    return TimeLimits(
        connect=settings.connect_timeout_s,
        first_token=settings.first_token_timeout_s,
        idle=settings.idle_timeout_s,
        total=settings.total_timeout_s,
    )


def _limits(settings: EngineSettings, in_flight: int = IN_FLIGHT) -> PoolLimits:
    return PoolLimits(
        max_in_flight=settings.max_in_flight or in_flight,
        max_waiting=settings.max_waiting,
        max_wait_seconds=settings.queue_timeout_s,
    )
