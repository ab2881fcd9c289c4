"""What engines and guard workers report, turned into metrics."""

from __future__ import annotations

from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram

from guardrails.runtime import Observer
from guardrails.worker_process import WorkerEvent
from service.engine.errors import Refused, UpstreamError
from service.engine.observer import ChildState, CircuitState
from service.telemetry.metrics import FINE, FIRST_TOKEN, SECONDS, Metrics, child

logger = structlog.get_logger(__name__)

CIRCUITS: dict[CircuitState, int] = {"closed": 0, "half_open": 1, "open": 2}


class EngineMetrics:
    """`service.engine.observer.EngineObserver`. Upstreams' names come from policies: they are few."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._in_flight_now: dict[str, int] = {}  # counted twice a request, read when metrics are asked for
        self._in_flight = Gauge(
            "keel_upstream_in_flight", "Requests with an upstream.", ("upstream",), registry=registry
        )
        self._waiting = Gauge("keel_engine_waiting", "Requests waiting for a slot.", registry=registry)
        self._first_byte = Histogram(
            "keel_upstream_first_event_seconds",
            "From sending a request to a stream's first event.",
            ("upstream",),
            buckets=FIRST_TOKEN,
            registry=registry,
        )
        self._attempts = Histogram(
            "keel_upstream_attempt_seconds",
            "Attempts at an upstream, by outcome.",
            ("upstream", "outcome"),
            buckets=SECONDS,
            registry=registry,
        )
        self._retries = Counter(
            "keel_upstream_retries", "Attempts made again.", ("upstream", "error"), registry=registry
        )
        self._refused = Counter(
            "keel_engine_refused", "Requests that no upstream got.", ("reason",), registry=registry
        )
        self._circuit = Gauge(
            "keel_upstream_circuit", "0 closed, 1 half open, 2 open.", ("upstream",), registry=registry
        )
        self._child_up = Gauge(
            "keel_vllm_ready", "1 while the managed vLLM serves.", ("name",), registry=registry
        )
        self._restarts = Gauge(
            "keel_vllm_restarts", "Restarts of the managed vLLM.", ("name",), registry=registry
        )

    def in_flight(self, upstream: str, count: int) -> None:
        """So many requests are now with this upstream."""
        if upstream not in self._in_flight_now:
            self._in_flight.labels(upstream).set_function(lambda: self._in_flight_now[upstream])
        self._in_flight_now[upstream] = count

    def waiting(self, count: int) -> None:
        """So many requests now wait for a slot."""
        self._waiting.set(count)

    def first_byte(self, upstream: str, seconds: float) -> None:
        """A stream's first event came so long after its request was sent."""
        child(self._first_byte, upstream).observe(seconds)

    def finished(self, upstream: str, error: UpstreamError | None, seconds: float) -> None:
        """One attempt ended."""
        child(self._attempts, upstream, type(error).__name__ if error else "ok").observe(seconds)

    def retried(self, upstream: str, error: UpstreamError) -> None:
        """This error is answered by another attempt."""
        child(self._retries, upstream, type(error).__name__).inc()

    def refused(self, error: Refused) -> None:
        """A request was not sent at all."""
        child(self._refused, type(error).__name__).inc()

    def circuit(self, upstream: str, state: CircuitState) -> None:
        """The upstream's circuit changed."""
        child(self._circuit, upstream).set(CIRCUITS[state])

    def child(self, name: str, state: ChildState, restarts: int) -> None:
        """A managed vLLM changed its state."""
        child(self._child_up, name).set(state == "ready")
        child(self._restarts, name).set(restarts)


class RuntimeMetrics(Observer):
    """What the guard workers do. Servables' names come from policies: they are few."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._batch_size = Histogram(
            "keel_guard_batch_size",
            "Texts that a guard worker took at once.",
            ("servable",),
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self._batch_time = Histogram(
            "keel_guard_batch_seconds",
            "Time over one batch.",
            ("servable",),
            buckets=FINE,
            registry=registry,
        )
        self._jobs = Counter(
            "keel_guard_jobs", "Jobs by how they ended.", ("servable", "outcome"), registry=registry
        )
        self._stages = Counter(
            "keel_guard_stage",
            "Pieces of text by the stage of a cascade that answered for them: exit or encoder.",
            ("servable", "stage"),
            registry=registry,
        )
        self._workers = Counter(
            "keel_guard_worker_events", "What happened to guard workers.", ("event",), registry=registry
        )

    def on_batch(self, servable: str, size: int, seconds: float) -> None:
        """A batch came back."""
        child(self._batch_size, servable).observe(size)
        child(self._batch_time, servable).observe(seconds)

    def on_answer(self, servable: str, result: Any) -> None:
        """A text was answered, by one stage of a cascade or without one."""
        if stage := getattr(result, "stage", ""):
            child(self._stages, servable, stage).inc()

    def on_job(self, servable: str, outcome: str, seconds: float) -> None:
        """A job ended for one caller."""
        child(self._jobs, servable, outcome).inc()

    def on_worker(self, event: WorkerEvent, pid: int, detail: str) -> None:
        """Something happened to a worker; what should not have is logged."""
        child(self._workers, event).inc()
        if event in ("died", "killed", "failed"):
            logger.error("guard_worker", what=event, pid=pid, detail=detail)
