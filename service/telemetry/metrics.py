"""Prometheus metrics: OpenTelemetry's GenAI names where they exist, `keel_*` for the rest.

Labels are bounded: routes, policies, guards and their categories come from the code and the policy files,
never from a request. Source of the names: OpenTelemetry semantic conventions for generative AI, in the
spelling that OTLP-to-Prometheus translation gives them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

# Bucket bounds: the conventions' advice for durations and tokens; Keel's own times start at 50 µs.
SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKENS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144)
FINE = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
REWARDS = (-4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SCORES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.99, 0.997, 0.999)
CHARACTERS = (0, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096)


M = TypeVar("M", Counter, Gauge, Histogram)


class Metrics:
    """All metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series each, of little use
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._add_requests(self.registry)
        self._add_guards(self.registry)
        self._add_alignment(self.registry)
        self._add_revise(self.registry)
        self._add_store(self.registry)
        self._add_experiments(self.registry)
        self._add_people(self.registry)
        self._add_state(self.registry)
        self._add_audit(self.registry)
        self._add_drift(self.registry)

    def exposition(self, others: Iterable[bytes] = ()) -> bytes:
        """The text format, with the expositions of child processes behind it."""
        return b"".join((generate_latest(self.registry), *others))

    def _add_requests(self, registry: CollectorRegistry) -> None:
        request = ("gen_ai_operation_name", "gen_ai_request_model")
        self.request_duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Duration of generation requests.",
            (*request, "error_type"),
            buckets=SECONDS,
            registry=registry,
        )
        self.time_to_first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From a streaming request's arrival to its first released token.",
            request,
            buckets=FIRST_TOKEN,
            registry=registry,
        )
        self.token_usage = Histogram(
            "gen_ai_client_token_usage",
            "Tokens per request.",
            (*request, "gen_ai_token_type"),
            buckets=TOKENS,
            registry=registry,
        )
        self.http_requests = Counter(
            "keel_http_requests", "HTTP calls.", ("route", "method", "status"), registry=registry
        )
        self.in_flight = Gauge(
            "keel_http_requests_in_flight", "HTTP calls being answered.", registry=registry
        )
        self.overhead = Histogram(
            "keel_overhead_seconds",
            "Time that a generation request spent in the gateway itself.",
            ("model",),
            buckets=FINE,
            registry=registry,
        )
        self.requests = Counter(
            "keel_requests", "Generation requests by how they ended.", ("model", "state"), registry=registry
        )

    def _add_guards(self, registry: CollectorRegistry) -> None:
        self.verdicts = Counter(
            "keel_verdicts", "Texts examined, by outcome.", ("model", "stage", "status"), registry=registry
        )
        self.guard_duration = Histogram(
            "keel_guard_duration_seconds",
            "Time that a guard took over one text.",
            ("guard", "stage"),
            buckets=FINE,
            registry=registry,
        )
        self.guard_score = Histogram(
            "keel_guard_score",
            "Scores that classifiers gave to texts, the highest of a text's categories.",
            ("model", "guard", "stage"),
            buckets=SCORES,
            registry=registry,
        )
        self.findings = Counter(
            "keel_guard_findings",
            "What guards found.",
            ("guard", "category", "action", "stage"),
            registry=registry,
        )
        self.guard_errors = Counter(
            "keel_guard_errors",
            "Guards that could not answer.",
            ("guard", "reason", "stage"),
            registry=registry,
        )
        self.held_back = Histogram(
            "keel_held_back_characters",
            "Characters that a stream held back when a chunk had been examined.",
            ("model",),
            buckets=CHARACTERS,
            registry=registry,
        )
        self.rejected = Counter(
            "keel_requests_rejected", "Calls turned away at the door.", ("reason",), registry=registry
        )

    def _add_alignment(self, registry: CollectorRegistry) -> None:
        self.rerank_candidates = Counter(
            "keel_rerank_candidates",
            "Replies generated to choose from: chosen, passed over, or blocked by a guard.",
            ("model", "outcome"),
            registry=registry,
        )
        self.rerank_tokens = Counter(
            "keel_rerank_tokens",
            "Completion tokens generated to choose from, and of those the ones that callers got.",
            ("model", "kind"),
            registry=registry,
        )
        self.rerank_duration = Histogram(
            "keel_rerank_duration_seconds",
            "Time that a reply took to generate its candidates, to examine and to score them.",
            ("model", "phase"),
            buckets=SECONDS,
            registry=registry,
        )
        self.rerank_errors = Counter(
            "keel_rerank_errors",
            "Candidates that could not be scored, by reason.",
            ("model", "reason"),
            registry=registry,
        )
        self.rerank_refused = Counter(
            "keel_rerank_refused",
            "Choices answered with a refusal, for no candidate was good enough.",
            ("model",),
            registry=registry,
        )
        # A histogram with negative bounds has no sum, and a sum that falls is no counter.
        self.reward_sum = Counter(
            "keel_reward_sum",
            "Sums of the positive rewards and of the negative ones, without their sign.",
            ("model", "which", "sign"),
            registry=registry,
        )
        self.reward_score = Histogram(
            "keel_reward_score",
            "Rewards of the replies that callers got, and of all candidates.",
            ("model", "which"),
            buckets=REWARDS,
            registry=registry,
        )

    def _add_revise(self, registry: CollectorRegistry) -> None:
        self.revise_replies = Counter(
            "keel_revise_replies",
            "Choices by what critique and revision made of them.",
            ("model", "outcome"),
            registry=registry,
        )
        self.revise_rounds = Histogram(
            "keel_revise_rounds",
            "Revisions of one choice that was criticised.",
            ("model",),
            buckets=(0, 1, 2, 3, 4, 6, 8),
            registry=registry,
        )
        self.revise_violations = Counter(
            "keel_revise_violations",
            "Principles that replies violated before any revision.",
            ("model", "principle"),
            registry=registry,
        )
        self.revise_errors = Counter(
            "keel_revise_errors",
            "Choices that could not be criticised or revised to the end, by reason.",
            ("model", "reason"),
            registry=registry,
        )
        self.revise_duration = Histogram(
            "keel_revise_duration_seconds",
            "Time that critique and revision added to a reply.",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self.revise_tokens = Counter(
            "keel_revise_tokens",
            "Tokens that critique and revision cost, prompts included.",
            ("model", "role"),
            registry=registry,
        )
        self.rerank_pairs = Counter(
            "keel_rerank_pairs",
            "Best and worst candidates by what became of them as preference data.",
            ("model", "outcome"),
            registry=registry,
        )
        self.revise_pairs = Counter(
            "keel_revise_pairs",
            "Revised pairs by what became of them as preference data.",
            ("model", "outcome"),
            registry=registry,
        )

    def _add_people(self, registry: CollectorRegistry) -> None:
        self.feedback = Counter(
            "keel_feedback", "What people said of replies.", ("policy", "kind"), registry=registry
        )
        self.reviews = Counter(
            "keel_reviews", "Decisions about what guards withheld.", ("policy", "decision"), registry=registry
        )
        self.review_queue = Gauge(
            "keel_review_queue", "Withheld items that wait for a person.", registry=registry
        )

    def _add_store(self, registry: CollectorRegistry) -> None:
        self.store_rows = Counter("keel_store_rows", "Rows committed.", ("table",), registry=registry)
        self.store_dropped = Counter(
            "keel_store_dropped", "Rows that could not be kept, by reason.", ("reason",), registry=registry
        )
        self.store_lag = Gauge(
            "keel_store_lag_seconds", "How long the oldest row has waited to be committed.", registry=registry
        )
        self.store_spool_bytes = Gauge(
            "keel_store_spool_bytes", "Rows on disk that wait to be committed.", registry=registry
        )
        self.store_commit_duration = Histogram(
            "keel_store_commit_duration_seconds",
            "Time of a transaction that writes rows.",
            buckets=FINE,
            registry=registry,
        )

    def _add_experiments(self, registry: CollectorRegistry) -> None:
        self.experiment_exposures = Counter(
            "keel_experiment_exposures",
            "Requests that an experiment gave to an arm.",
            ("experiment", "arm"),
            registry=registry,
        )
        self.experiment_weight = Gauge(
            "keel_experiment_weight", "An arm's share of the units.", ("experiment", "arm"), registry=registry
        )
        self.experiment_shadows = Counter(
            "keel_experiment_shadows",
            "Copies of requests for shadow arms: finished, blocked, failed, or skipped for lack of room.",
            ("experiment", "arm", "outcome"),
            registry=registry,
        )
        self.experiment_scores = Counter(
            "keel_experiment_scores",
            "Replies for an experiment's scorer: scored, failed, dropped, late, or unfit to be scored.",
            ("experiment", "arm", "outcome"),
            registry=registry,
        )
        self.experiment_changes = Counter(
            "keel_experiment_changes",
            "Changes of an experiment's state, by the gateway itself or by people.",
            ("experiment", "action"),
            registry=registry,
        )

    def _add_state(self, registry: CollectorRegistry) -> None:
        self.policy_reloads = Counter(
            "keel_policy_reloads", "Policy reloads by outcome.", ("outcome",), registry=registry
        )
        self.policy_reload_ok = Gauge(
            "keel_policy_last_reload_successful",
            "1 while the newest policy and experiment files are what is served.",
            registry=registry,
        )
        self.policy_info = Gauge(
            "keel_policy_info", "Policies served.", ("model", "digest"), registry=registry
        )
        self.checkpoint_info = Gauge(
            "keel_checkpoint_info", "Checkpoints served.", ("checkpoint", "digest"), registry=registry
        )
        self.checkpoint_swaps = Counter(
            "keel_checkpoint_swaps",
            "Checkpoints that took another's place, or were refused.",
            ("alias", "outcome"),
            registry=registry,
        )
        self.checkpoint_swap_seconds = Histogram(
            "keel_checkpoint_swap_seconds",
            "From asking for a swap to new requests going to the new checkpoint.",
            ("alias",),
            buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0),
            registry=registry,
        )
        self.checkpoint_behind = Gauge(
            "keel_checkpoint_alias_behind",
            "1 while an alias means a checkpoint in the registry that this gateway has refused.",
            ("alias",),
            registry=registry,
        )
        self.ready = Gauge("keel_ready", "1 while the gateway takes requests.", registry=registry)

    def _add_audit(self, registry: CollectorRegistry) -> None:
        self.audit_records = Counter(
            "keel_audit_records", "Records written to the audit log.", ("action",), registry=registry
        )
        self.audit_seq = Gauge(
            "keel_audit_sequence",
            "The audit log's last record: a witness elsewhere of how long it must be.",
            registry=registry,
        )
        self.audit_failing = Gauge(
            "keel_audit_failing", "1 while the audit log can't be written.", registry=registry
        )

    def _add_drift(self, registry: CollectorRegistry) -> None:
        signal = ("model", "signal")
        self.drift_psi = Gauge(
            "keel_drift_psi",
            "Population stability index of the window against the reference.",
            signal,
            registry=registry,
        )
        self.drift_ks = Gauge(
            "keel_drift_ks",
            "Largest difference of the window's and the reference's distributions.",
            signal,
            registry=registry,
        )
        self.drift_samples = Gauge(
            "keel_drift_samples",
            "Values in the window and in the reference.",
            (*signal, "which"),
            registry=registry,
        )


@lru_cache(maxsize=8_192)
def child(metric: M, *labels: str) -> M:
    """`metric.labels(*labels)`, remembered: on the hot path looking a child up costs more than counting."""
    return metric.labels(*labels)
