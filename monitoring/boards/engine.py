"""Engines: vLLM's own metrics, and what the gateway sees of its upstreams."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import (
    AnyPanel,
    Query,
    Row,
    board,
    events,
    graph,
    number,
    quantile,
    quantiles,
    rate,
    ratio,
)

VLLM = 'model_name=~"$engine_model"'
HERE = 'instance=~"$instance"'


def engine() -> Dashboard:
    """The dashboard."""
    return board(
        "keel-engine",
        "Keel / Engines",
        "vLLM: load, cache, speed; upstreams as the gateway sees them.",
        [
            Row("vLLM at a glance", _glance()),
            Row("vLLM: load and cache", _load()),
            Row("vLLM: speed", _speed()),
            Row("Upstreams, seen from the gateway", _upstreams()),
        ],
        [
            ("engine_model", "vllm:num_requests_running", "model_name"),
            ("instance", "keel_ready", "instance"),
        ],
    )


def _glance() -> list[AnyPanel]:
    return [
        number(
            "Running",
            "Requests that are generated for.",
            "short",
            Query(f"sum(vllm:num_requests_running{{{VLLM}}})"),
        ),
        number(
            "Waiting",
            "Requests that wait for a place in the batch.",
            "short",
            Query(f"sum(vllm:num_requests_waiting{{{VLLM}}})"),
            steps=((None, "green"), (16, "orange"), (64, "red")),
        ),
        number(
            "KV cache",
            "Of the fullest engine.",
            "percentunit",
            Query(f"max(vllm:kv_cache_usage_perc{{{VLLM}}})"),
            steps=((None, "green"), (0.8, "orange"), (0.95, "red")),
        ),
        number(
            "Tokens",
            "Generated, a second.",
            "suffix: tokens/s",
            Query(rate("vllm:generation_tokens_total", VLLM)),
        ),
        number(
            "Between tokens, p95",
            "Inter-token latency.",
            "s",
            Query(quantile(0.95, "vllm:inter_token_latency_seconds", VLLM)),
        ),
        number(
            "Managed engines ready",
            "Of the vLLM processes that gateways keep themselves.",
            "percentunit",
            Query(f"avg(keel_vllm_ready{{{HERE}}})"),
            steps=((None, "red"), (1, "green")),
        ),
    ]


def _load() -> list[AnyPanel]:
    hits = rate("vllm:prefix_cache_hits_total", VLLM)
    asked = rate("vllm:prefix_cache_queries_total", VLLM)
    return [
        graph(
            "Requests",
            "Running and waiting.",
            "short",
            Query(f"sum(vllm:num_requests_running{{{VLLM}}})", "running"),
            Query(f"sum(vllm:num_requests_waiting{{{VLLM}}})", "waiting"),
        ),
        graph(
            "KV cache",
            "Used share, by engine.",
            "percentunit",
            Query(f"vllm:kv_cache_usage_perc{{{VLLM}}}", "{{instance}} {{model_name}}"),
        ),
        graph(
            "Prefix cache hits",
            "Share of the prompt tokens that were there already.",
            "percentunit",
            Query(ratio(hits, asked), "hits"),
        ),
        graph(
            "Tokens",
            "Prompt and generation.",
            "suffix: tokens/s",
            Query(rate("vllm:prompt_tokens_total", VLLM), "prompt"),
            Query(rate("vllm:generation_tokens_total", VLLM), "generation"),
        ),
        events(
            "Requests by reason of their end",
            "stop, length, abort.",
            "vllm:request_success_total",
            VLLM,
            "finished_reason",
            unit="reqps",
        ),
        graph(
            "Preemptions",
            "Requests put back for want of cache: give it more, or admit fewer.",
            "ops",
            Query(rate("vllm:num_preemptions_total", VLLM), "preemptions"),
        ),
    ]


def _speed() -> list[AnyPanel]:
    return [
        graph(
            "First token",
            "In the engine, queueing included.",
            "s",
            *quantiles("vllm:time_to_first_token_seconds", VLLM),
            width=6,
        ),
        graph(
            "Between tokens",
            "Inter-token latency.",
            "s",
            *quantiles("vllm:inter_token_latency_seconds", VLLM),
            width=6,
        ),
        graph(
            "Whole request",
            "In the engine.",
            "s",
            *quantiles("vllm:e2e_request_latency_seconds", VLLM),
            width=6,
        ),
        graph(
            "In the queue",
            "Before a request is first run.",
            "s",
            *quantiles("vllm:request_queue_time_seconds", VLLM),
            width=6,
        ),
    ]


def _upstreams() -> list[AnyPanel]:
    return [
        events(
            "Attempts",
            "By outcome; several may be made for one request.",
            "keel_upstream_attempt_seconds_count",
            HERE,
            "upstream, outcome",
            unit="reqps",
        ),
        graph(
            "Time of an attempt, p95",
            "By upstream.",
            "s",
            Query(
                quantile(0.95, "keel_upstream_attempt_seconds", f'{HERE},outcome="ok"', "upstream"),
                "{{upstream}}",
            ),
        ),
        graph(
            "First event, p95",
            "From sending a streaming request to its first event.",
            "s",
            Query(quantile(0.95, "keel_upstream_first_event_seconds", HERE, "upstream"), "{{upstream}}"),
        ),
        graph(
            "In flight and waiting",
            "With an upstream, and waiting for a slot.",
            "short",
            Query(f"sum by (upstream) (keel_upstream_in_flight{{{HERE}}})", "{{upstream}}"),
            Query(f"sum(keel_engine_waiting{{{HERE}}})", "waiting"),
        ),
        graph(
            "Retries and refusals",
            "Attempts made again, and requests that no upstream got.",
            "reqps",
            Query(rate("keel_upstream_retries_total", HERE, "upstream, error"), "{{upstream}} {{error}}"),
            Query(rate("keel_engine_refused_total", HERE, "reason"), "refused {{reason}}"),
        ),
        graph(
            "Circuits, restarts",
            "0 closed, 1 half open, 2 open; restarts of managed engines.",
            "short",
            Query(f"max by (upstream) (keel_upstream_circuit{{{HERE}}})", "{{upstream}}"),
            Query(f"max by (name) (keel_vllm_restarts{{{HERE}}})", "{{name}} restarts"),
        ),
    ]
