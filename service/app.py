"""The composition root: the one place where the gateway's parts are made and wired to one another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from guardrails.build import GuardEnvironment, problems
from guardrails.runtime import Runtime
from policies.load import PolicyLibrary, ReloadOutcome
from policies.registry import Registry
from policies.spec import ModelRef
from service.api.generation import GenerationEndpoint
from service.api.site import make_site
from service.auth import Callers, KeyFile
from service.catalog import Catalog
from service.edge import Authenticate, Gate, Observe
from service.engines import Engines
from service.http import App
from service.limits import Limiter
from service.router import Router
from service.settings import Settings
from service.telemetry.metrics import Metrics

KEY_REFRESH_SECONDS = 2.0
Progress = Callable[[str], None]


class Gateway:
    """One running gateway. `app` is the ASGI application; it may be served before `start` has ended."""

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        """Raises `PolicyError`, `KeyFileError` where files are wrong. Nothing is started yet."""
        self.settings = settings
        self.log = log
        self.metrics = Metrics()
        self.registry = Registry(settings.checkpoints)
        self.runtime = Runtime(
            workers=settings.guards.workers,
            max_batch=settings.guards.max_batch,
            max_queue=settings.guards.max_queue,
        )
        self.environment = GuardEnvironment(self.registry, hash_key(settings), describe=self.runtime.describe)
        self.engines = Engines(settings)
        self.catalog = Catalog(self.environment, self.runtime, self.metrics, self.engines.target_for)
        self.library = PolicyLibrary(
            settings.policies,
            self.registry,
            check=lambda spec: problems(spec, self.environment),
            model=ModelRef(upstream=settings.upstream) if settings.upstream else None,
        )
        self.callers = Callers(
            KeyFile(settings.key_file),
            [key.get_secret_value() for key in settings.api_keys],
            settings.admin_key.get_secret_value() if settings.admin_key else None,
            requests_per_minute=settings.limits.requests_per_minute,
            tokens_per_minute=settings.limits.tokens_per_minute,
        )
        self.limiter = Limiter(
            settings.limits.storage, self.metrics, log, on_failure=settings.limits.on_storage_failure
        )
        self.draining = False
        self._started = False
        self._tasks: list[asyncio.Task[None]] = []
        self.app = self._stack()

    def _stack(self) -> App:
        settings, limits = self.settings, self.settings.limits
        endpoints: dict[str, dict[str, App]] = {}
        for kind, path in (("chat", "/v1/chat/completions"), ("text_completion", "/v1/completions")):
            endpoint = GenerationEndpoint(kind, self.catalog, self.metrics, self.limiter, limits)  # type: ignore[arg-type]
            endpoints[path] = {"POST": endpoint}
        app: App = Router(endpoints, make_site(self))
        app = Authenticate(app, self.callers, self.limiter)
        app = Gate(
            app,
            self.metrics,
            unready=self._unready_reason,
            max_in_flight=limits.max_in_flight,
            max_body_bytes=limits.max_body_bytes,
            host_names=None if self.callers.required else (settings.host, *settings.trusted_hosts),
        )
        return Observe(app, self.metrics, self.log, settings.log.access)

    # Life

    async def start(self, progress: Progress = lambda _: None) -> None:
        """Load everything, and be ready when this returns."""
        progress("loading policies and guards")
        await self.catalog.replace(self.library.snapshot())
        await self.engines.start()
        self._tasks.append(asyncio.create_task(self._refresh_keys()))
        if self.settings.watch_policies:
            self._tasks.append(asyncio.create_task(self._watch_policies()))
        self._started = True
        self.metrics.ready.set(1)

    async def stop(self) -> None:
        """Let go of everything; children are ended."""
        self.draining = True
        self.metrics.ready.set(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engines.stop()
        await self.runtime.aclose()

    def unready(self) -> dict[str, str]:
        """What keeps the gateway from serving, by component."""
        reasons: dict[str, str] = {}
        if self.draining:
            reasons["gateway"] = "shutting down"
        elif not self._started:
            reasons["gateway"] = "starting"
        return reasons

    def _unready_reason(self) -> str | None:
        if self._started and not self.draining:
            return None
        return "; ".join(f"{name}: {reason}" for name, reason in self.unready().items())

    async def metrics_page(self) -> bytes:
        """This gateway's metrics, and the managed engines' own."""
        return await asyncio.to_thread(self.metrics.exposition)

    # Changes while running

    async def reload_policies(self) -> ReloadOutcome:
        """Read the policy files again and serve what they say now."""
        outcome = await asyncio.to_thread(self.library.reload)
        await self._take_over(outcome)
        return outcome

    async def _take_over(self, outcome: ReloadOutcome) -> None:
        await self.catalog.replace(outcome.policies)
        await self.engines.start()

    async def _watch_policies(self) -> None:
        async for outcome in self.library.watch():
            await self._take_over(outcome)

    async def _refresh_keys(self) -> None:
        while True:
            await asyncio.sleep(KEY_REFRESH_SECONDS)
            self.callers.refresh()


def hash_key(settings: Settings) -> bytes:
    """What the digests of the action `hash` are keyed with: set, or made once and kept in the state folder."""
    if settings.hash_key is not None:
        return settings.hash_key.get_secret_value().encode()
    path: Path = settings.state_dir / "hash.key"
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = secrets.token_bytes(32)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another gateway was faster
        return path.read_bytes()
    with os.fdopen(handle, "wb") as file:
        file.write(key)
    return key
