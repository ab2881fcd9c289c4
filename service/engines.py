"""The engines behind the policies: upstreams named by policies or on the command line, and managed vLLMs.

Policies that name the same upstreams, or the same checkpoint, share one engine, and with it its bounds, its
connections and what it knows of their health.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from policies.base import Upstream
from policies.registry import Registry, ResolvedCheckpoint
from policies.spec import PolicySpec
from service.engine.config import PoolLimits, TimeLimits, UpstreamConfig
from service.engine.engine import Engine
from service.engine.errors import UpstreamError
from service.engine.observer import EngineObserver
from service.engine.vllm_command import VllmConfig, on_cpu
from service.engine.vllm_process import ManagedVllm
from service.settings import Engine as EngineSettings
from service.settings import Settings

Progress = Callable[[str], None]
Key = tuple[Upstream, ...] | str
METRICS_TIMEOUT = 2.0  # seconds
IN_FLIGHT = 256  # per upstream, where the settings don't say
CPU_IN_FLIGHT = 64  # beyond it, vLLM on a CPU answers no more of them a second, only later


class EngineError(Exception):
    """A policy's engine can't be had; the message says which and why."""


class Engines:
    """All engines of one gateway, by what they serve."""

    def __init__(self, settings: Settings, registry: Registry, observer: EngineObserver) -> None:
        self._settings = settings
        self._registry = registry
        self._observer = observer
        self._engines: dict[Key, Engine] = {}
        self._started: set[Key] = set()
        self._retiring: set[asyncio.Task[bool]] = set()
        self.progress: Progress = lambda _: None

    def engine_for(self, spec: PolicySpec) -> tuple[Engine, str, str]:
        """The engine of a policy, the model's name there, and what is loaded as `name@digest`.

        Raises `EngineError`, or `RegistryError` for a checkpoint that isn't there.
        """
        targets = spec.model.targets or ((self._settings.upstream,) if self._settings.upstream else ())
        if targets:
            model = targets[0].model
            if any(target.model != model for target in targets):
                raise EngineError(f"policy {spec.name!r}: its upstreams must all use one name for the model")
            return self._upstreams(targets), model, model
        checkpoint = self._registry.resolve(spec.model.checkpoint or "")
        return self._managed(checkpoint), checkpoint.name, checkpoint.ref

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

    def _managed(self, checkpoint: ResolvedCheckpoint) -> Engine:
        key = checkpoint.ref
        if key not in self._engines:
            config = VllmConfig(
                checkpoint.path,
                checkpoint.name,
                arguments=self._settings.engine.vllm_args,
                start_seconds=self._settings.engine.start_timeout_s,
            )
            child = ManagedVllm(
                config,
                observer=self._observer,
                on_phase=lambda phase: self.progress(f"{checkpoint.name}: {phase}"),
            )
            self._engines[key] = Engine.managed(
                child,
                times=_times(self._settings.engine),
                limits=_limits(self._settings.engine, CPU_IN_FLIGHT if on_cpu(config.device) else IN_FLIGHT),
                observer=self._observer,
            )
        return self._engines[key]

    async def start(self) -> None:
        """Start what isn't started, and wait until it serves. Raises `VllmFailed`, `CheckpointError`."""
        fresh = [key for key in self._engines if key not in self._started]
        for key in fresh:
            if isinstance(key, str):
                self.progress(f"{key.partition('@')[0]}: verifying the checkpoint")
                await asyncio.to_thread(lambda ref: self._registry.verify(self._registry.resolve(ref)), key)
            self._started.add(key)
            await self._engines[key].start()
        for key in fresh:
            await self._engines[key].wait_ready()

    def retire(self, used: Collection[Engine]) -> None:
        """Let engines that no policy uses any more finish their requests, and close them."""
        for key, engine in list(self._engines.items()):
            if engine in used:
                continue
            del self._engines[key]
            if key in self._started:
                self._started.discard(key)
                task = asyncio.create_task(engine.aclose(drain=self._settings.drain_timeout_s))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)

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
