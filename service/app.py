"""The composition root: the one place where the gateway's parts are made and wired to one another."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from structlog.typing import FilteringBoundLogger

from guardrails.build import GuardEnvironment, problems
from guardrails.runtime import Runtime
from guardrails.verdict_cache import VerdictCache
from policies.load import SHIPPED, PolicyLibrary, ReloadOutcome
from policies.registry import Registry
from policies.spec import ModelRef
from service.admission import Admission
from service.api.admin import ReloadResult
from service.api.checks import Checks
from service.api.embeddings import PATH as EMBEDDINGS_PATH
from service.api.embeddings import Embeddings
from service.api.endpoint import JsonEndpoint
from service.api.generation import GenerationEndpoint
from service.api.site import make_site
from service.audit import GATEWAY, AuditLog
from service.audit_calls import AuditCalls
from service.audit_chain import AuditError
from service.auth import Callers, KeyFile
from service.catalog import Catalog
from service.comparisons import Comparisons, JudgementRequest
from service.edge import Authenticate, Gate, Observe
from service.engines import Engines
from service.experiments.house import House
from service.experiments.scoring import Scoring
from service.feedback import Feedback, FeedbackRequest
from service.generation import PATHS
from service.hash_key import hash_key
from service.hotload.canary import Canary
from service.hotload.swaps import Swaps
from service.http import App
from service.limits import Limiter
from service.openai.types import CheckRequest, EmbeddingRequest, ModerationRequest
from service.outcomes import Outcomes
from service.records import Records
from service.reviews import Reviews
from service.router import Router
from service.settings import Settings
from service.store.database import Database, StoreError
from service.store.writer import Writer
from service.telemetry.drift import Drift
from service.telemetry.metrics import Metrics, child
from service.telemetry.observers import EngineMetrics, RuntimeMetrics
from service.telemetry.tracing import Tracing
from service.ui.door import Door
from service.ui.sessions import Sessions
from service.upkeep import forget_old, refresh_keys, watch_drift

Progress = Callable[[str], None]


class Gateway:
    """One running gateway. `app` is the ASGI application; it may be served before `start` has ended."""

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        """Raises `PolicyError`, `KeyFileError` where files are wrong. Nothing is started yet."""
        self.settings = settings
        self.log = log
        self.metrics = Metrics()
        self.audit = self._open_audit()
        self.registry = Registry(settings.checkpoints)
        self.runtime = Runtime(
            workers=settings.guards.workers,
            max_batch=settings.guards.max_batch,
            max_queue=settings.guards.max_queue,
            observer=RuntimeMetrics(self.metrics),
        )
        self.environment = GuardEnvironment(self.registry, hash_key(settings), describe=self.runtime.describe)
        self.cache = VerdictCache(settings.guards.cache_entries)
        self.engines = Engines(settings, self.registry, EngineMetrics(self.metrics))
        self.catalog = Catalog(
            self.environment, self.runtime, self.engines, self.cache, self.metrics, settings.state_dir
        )
        self.library = PolicyLibrary(
            settings.policies,
            self.registry,
            check=lambda spec: problems(spec, self.environment),
            model=ModelRef(upstream=settings.upstream) if settings.upstream else None,
            shipped=SHIPPED if settings.shipped_policies else None,
            tenants=settings.tenants,
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
        self.outcomes = Outcomes(log)
        self.database = Database(settings.store_url)
        self.writer = Writer(
            self.database,
            settings.state_dir / "spool",
            self.metrics,
            log,
            max_bytes=settings.store.max_spool_bytes,
        )
        self.tracing = tracing_of(settings)
        self.drift = Drift(
            self.metrics,
            settings.state_dir / f"drift-{settings.audit.name}.json",
            window_s=settings.drift.window_s,
            reference_samples=settings.drift.reference_samples,
            min_samples=settings.drift.min_samples,
            bindings=self._bindings,
        )
        self.admission = Admission(self.runtime, self.metrics, self.catalog.values)
        self.house = House(
            settings.experiments,
            [policy.name for policy in self.library.snapshot().values()],
            catalog=self.catalog,
            callers=self.callers,
            database=self.database,
            writer=self.writer,
            outcomes=self.outcomes,
            metrics=self.metrics,
            audit=self.audit,
            log=log,
            unit_key=self.environment.hash_key,
            scoring=Scoring(settings, self.registry, self.writer, self.metrics, log),
            state_dir=settings.state_dir,
        )
        self.swaps = Swaps(
            settings,
            self.registry,
            self.catalog,
            self.engines,
            Canary(self.catalog.runner),
            self.metrics,
            log,
            self.audit,
        )
        self.records = Records(self.writer, self.runtime, self.metrics, log)
        self.outcomes.subscribe(self.records.observe, self.records.wants)
        self.comparisons = Comparisons(self.database, self.writer, self.metrics, self.environment.hash_key)
        self.reviews = Reviews(self.database, self.metrics, self.audit)
        self.last_reload = ReloadResult()
        self._policies_stand = True  # whether those that are served are what the files say
        self.draining = False
        self._started = False
        self._tasks: list[asyncio.Task[None]] = []
        self.app = self._stack()

    def _open_audit(self) -> AuditLog:
        settings, metrics, log = self.settings.audit, self.metrics, self.log

        def written(action: str, seq: int) -> None:
            child(metrics.audit_records, action).inc()
            metrics.audit_seq.set(seq)

        audit = AuditLog(
            self.settings.audit_folder,
            settings.name,
            key=settings.key.get_secret_value().encode() if settings.key else None,
            max_bytes=settings.max_bytes,
            written=written,
            failed=lambda message: log.error("audit_log_failing", error=message),
        )
        metrics.audit_failing.set_function(lambda: audit.error is not None)
        return audit

    def _stack(self) -> App:
        settings, limits = self.settings, self.settings.limits
        app: App = Router(self._endpoints(), make_site(self))
        app = Authenticate(app, self.callers, self.limiter)
        app = AuditCalls(app, self.audit)
        app = Gate(
            app,
            self.metrics,
            unready=self._unready_reason,
            check_load=self.admission.check_all,
            max_in_flight=limits.max_in_flight,
            max_body_bytes=limits.max_body_bytes,
            keyless=lambda: not self.callers.required,
            host_names=(settings.host, *settings.trusted_hosts),
        )
        sessions = Sessions(self.environment.hash_key, self.callers)
        app = Door(app, self.callers, sessions, self.limiter, limits, self.audit)
        return Observe(app, self.metrics, self.log, settings.log.access)

    def _endpoints(self) -> dict[str, dict[str, App]]:
        limits, catalog, runner = self.settings.limits, self.catalog, self.catalog.runner
        checks = Checks(catalog, runner, self.cache, self.metrics, self.settings.default_policy)
        embeddings = Embeddings(self.catalog, self.limiter)
        endpoints: dict[str, dict[str, App]] = {
            path: {
                "POST": GenerationEndpoint(
                    kind,
                    catalog,
                    runner,
                    self.metrics,
                    self.limiter,
                    limits,
                    self.audit,
                    self.outcomes,
                    self.tracing,
                    self.admission,
                    self.house.experiments,
                    self.records,
                )
            }
            for kind, path in PATHS.items()
        }
        endpoints["/v1/checks"] = {"POST": JsonEndpoint(CheckRequest, checks.check, limits)}
        endpoints["/v1/moderations"] = {"POST": JsonEndpoint(ModerationRequest, checks.moderate, limits)}
        feedback = Feedback(
            self.catalog,
            self.records,
            self.database,
            self.writer,
            self.metrics,
            self.log,
            self.environment.hash_key,
        )
        judging = JsonEndpoint(JudgementRequest, self.comparisons.judge, limits)
        endpoints["/v1/comparisons"] = {"POST": judging}
        endpoints["/v1/feedback"] = {"POST": JsonEndpoint(FeedbackRequest, feedback.give, limits)}
        endpoints[EMBEDDINGS_PATH] = {"POST": JsonEndpoint(EmbeddingRequest, embeddings.embed, limits)}
        return endpoints

    # Life

    async def start(self, progress: Progress = lambda _: None) -> None:
        """Load everything; ready when this returns.

        Raises what says why not: `AuditError`, `ServableError`, `VllmFailed`, `RegistryError`, `EngineError`.
        """
        await asyncio.to_thread(self.audit.open)
        progress("loading guards and engines")
        self.engines.progress = progress
        await self.swaps.start(self.library.snapshot())
        await self.writer.resume()
        await self.house.start(watch=self.settings.watch_policies)
        self._tasks += map(asyncio.create_task, self._upkeep())
        self._started = True
        self.audit.record("gateway.start", actor=GATEWAY, subject="gateway", details=self._policy_digests())
        self.engines.progress = lambda phase: self.log.info("engine", phase=phase)

    def _upkeep(self) -> Iterator[Coroutine[Any, Any, None]]:
        settings, log = self.settings, self.log
        yield refresh_keys(self.callers, self.audit, log)
        yield forget_old(self.database, settings.store.keep_days * 86_400, log)
        if settings.drift.enabled:
            yield watch_drift(self.drift, settings.drift.every_s, log)
        if settings.watch_policies:
            yield self._watch_policies()
        if settings.hotload.watch:
            yield self.swaps.watch(settings.hotload.poll_s)

    async def stop(self) -> None:
        """Let go of everything; children are ended."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.house.aclose()
        await self.swaps.stop()
        await self.engines.stop()
        await self.records.aclose()
        await self.runtime.aclose()
        await self.limiter.aclose()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        if self._started:
            self.audit.record("gateway.stop", actor=GATEWAY, subject="gateway")
        try:
            await asyncio.to_thread(self.audit.close)
        except AuditError as error:
            self.log.error("audit_log_incomplete", error=str(error))
        await self.writer.close()
        await self.database.close()

    def unready(self) -> dict[str, str]:
        """What keeps the gateway from serving, by component."""
        if self.draining:
            return {"gateway": "shutting down"}
        reasons = self.engines.unready()
        if not self.runtime.healthy:
            reasons["guard workers"] = "not up"
        if not self._started:
            reasons["gateway"] = "starting"
        return reasons

    def _unready_reason(self) -> str | None:
        # Engines and workers that fail later answer for themselves: what doesn't need them goes on.
        if self._started and not self.draining:
            return None
        return "; ".join(f"{name}: {reason}" for name, reason in self.unready().items())

    async def metrics_page(self) -> bytes:
        """This gateway's metrics, and the managed engines' own."""
        self.metrics.ready.set(not self.unready())
        self.metrics.policy_reload_ok.set(self._policies_stand and not self.house.faults)
        if self._keeps_records():
            try:
                await self.reviews.measure()
            except StoreError as error:
                self.log.warning("review_queue_not_measured", error=str(error))
        return self.metrics.exposition(await self.engines.metrics())

    def _keeps_records(self) -> bool:
        """Whether anything is kept of any policy's conversations."""
        return any(map(self.records.concerns, (*self.catalog.all(), *self.catalog.variants())))

    # Changes while running

    async def reload_policies(self, actor: str = GATEWAY) -> ReloadResult:
        """Read the policy files again and serve what they say now, by what aliases mean now."""
        result = await self._take_over(await asyncio.to_thread(self.library.reload), actor)
        swaps = await self.swaps.follow(again=True, actor=actor)
        errors = [*result.errors, *(swap.reason for swap in swaps if not swap.ok)]
        return result.model_copy(update={"ok": not errors, "errors": errors})

    async def _take_over(self, outcome: ReloadOutcome, actor: str = GATEWAY) -> ReloadResult:
        result = ReloadResult.of(outcome)
        try:
            await self.catalog.replace(outcome.policies)
        except Exception as error:
            result = ReloadResult(ok=False, errors=[*result.errors, str(error)])
        self._policies_stand = result.ok
        if faults := await self.house.reload():
            result = result.model_copy(update={"ok": False, "errors": [*result.errors, *faults]})
        self.last_reload = result
        self.metrics.policy_reloads.labels("ok" if result.ok else "refused").inc()
        level = self.log.info if result.ok else self.log.error
        level("policies_reloaded", **result.model_dump())
        changes = result.model_dump(exclude={"errors"}) | {"errors": len(result.errors)}
        details = {**changes, **self._policy_digests()}
        self.audit.record("policy.reload", actor=actor, subject="policies", details=details)
        return result

    def _policy_digests(self) -> dict[str, dict[str, str]]:
        return {"policies": {served.name: served.policy.digest for served in self.catalog.all()}}

    def _bindings(self) -> dict[str, str]:
        """What a policy's distributions depend on."""
        return {
            served.name: f"{served.policy.digest}|{served.target.checkpoint}" for served in self.catalog.all()
        }

    async def _watch_policies(self) -> None:
        async for outcome in self.library.watch():
            await self._take_over(outcome)


def tracing_of(settings: Settings) -> Tracing | None:
    """What makes spans; None where nobody wants them."""
    chosen = settings.tracing
    if chosen.endpoint is None:
        return None
    headers = {name: value.get_secret_value() for name, value in chosen.headers.items()}
    return Tracing(chosen.endpoint, chosen.sample_rate, headers, importlib.metadata.version("keel"))
