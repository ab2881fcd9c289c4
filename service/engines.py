"""The engines behind the policies: upstreams named by policies or on the command line, and managed vLLMs.

Policies that name the same upstreams share one engine, and with it its bounds, its connections and what it
knows of their health.
"""

from __future__ import annotations

from policies.spec import PolicySpec, Upstream
from service.catalog import Target
from service.engine.config import PoolLimits, TimeLimits, UpstreamConfig
from service.engine.engine import Engine
from service.settings import Engine as EngineSettings
from service.settings import Settings


class Engines:
    """All engines of one gateway."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_targets: dict[tuple[Upstream, ...], Engine] = {}
        self._started: set[int] = set()

    def target_for(self, spec: PolicySpec) -> Target:
        """What answers for this policy. Raises `LookupError` where nothing can."""
        targets = spec.model.targets or ((self._settings.upstream,) if self._settings.upstream else ())
        if not targets:
            raise LookupError(
                f"policy {spec.name!r}: checkpoint {spec.model.checkpoint!r} is not being served"
            )
        model = targets[0].model
        if any(target.model != model for target in targets):
            raise LookupError(f"policy {spec.name!r}: its upstreams must all use one name for the model")
        engine = self._by_targets.get(targets)
        if engine is None:
            engine = Engine(
                [_config(target) for target in targets],
                times=_times(self._settings.engine),
                limits=_limits(self._settings.engine),
            )
            self._by_targets[targets] = engine
        return Target(engine, model, model)

    async def start(self) -> None:
        """Start what isn't started yet."""
        for engine in self._by_targets.values():
            if id(engine) not in self._started:
                await engine.start()
                self._started.add(id(engine))

    async def stop(self) -> None:
        """Stop all; what is still in flight is cut."""
        for engine in self._by_targets.values():
            await engine.aclose()


def _config(upstream: Upstream) -> UpstreamConfig:
    return UpstreamConfig(upstream.base_url, upstream.base_url, api_key_env=upstream.api_key_env)


def _times(settings: EngineSettings) -> TimeLimits:
    return TimeLimits(
        connect=settings.connect_timeout_s,
        first_token=settings.first_token_timeout_s,
        idle=settings.idle_timeout_s,
        total=settings.total_timeout_s,
    )


def _limits(settings: EngineSettings) -> PoolLimits:
    return PoolLimits(
        max_in_flight=settings.max_in_flight,
        max_waiting=settings.max_waiting,
        max_wait_seconds=settings.queue_timeout_s,
    )
