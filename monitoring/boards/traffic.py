"""Traffic and latency: what an operator looks at first."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import (
    HERE,
    MODELS,
    OPS,
    AnyPanel,
    Query,
    Row,
    board,
    events,
    graph,
    heat,
    mean,
    number,
    quantile,
    quantiles,
    rate,
    ratio,
)

DURATION = "gen_ai_server_request_duration_seconds"
FIRST = "gen_ai_server_time_to_first_token_seconds"
TOKENS = "gen_ai_client_token_usage"
ALL = rate("keel_requests_total", MODELS)


def traffic() -> Dashboard:
    """The dashboard."""
    return board(
        "keel-traffic",
        "Keel / Traffic and latency",
        "Generation requests: how many, how fast, how they ended, and what was turned away.",
        [
            Row("At a glance", _glance()),
            Row("Requests", _requests()),
            Row("Latency", _latency()),
            Row("Tokens", _tokens()),
            Row("The door", _door()),
        ],
        [("model", "keel_requests_total", "model"), ("instance", "keel_ready", "instance")],
    )


def _glance() -> list[AnyPanel]:
    failed = rate("keel_requests_total", f'{MODELS},state="failed"')
    blocked = rate("keel_requests_total", f'{MODELS},state="blocked"')
    return [
        number(
            "Ready",
            "Gateways that take requests, of those that Prometheus sees.",
            "percentunit",
            Query(f"avg(keel_ready{{{HERE}}})"),
            steps=((None, "red"), (0.5, "orange"), (1, "green")),
        ),
        number("Requests", "Generation requests a second.", "reqps", Query(ALL)),
        number(
            "Failed",
            "Share of requests that failed: engine, guards or gateway, not the caller.",
            "percentunit",
            Query(ratio(f"({failed} or vector(0))", ALL)),
            steps=((None, "green"), (0.01, "orange"), (0.05, "red")),
        ),
        number(
            "Blocked",
            "Share of requests whose prompt or reply a guard withheld.",
            "percentunit",
            Query(ratio(f"({blocked} or vector(0))", ALL)),
            steps=((None, "blue"),),
        ),
        number("p95", "95th percentile of a request's duration.", "s", Query(quantile(0.95, DURATION, OPS))),
        number(
            "First token, p95",
            "95th percentile of the time to a stream's first released token.",
            "s",
            Query(quantile(0.95, FIRST, OPS)),
        ),
    ]


def _requests() -> list[AnyPanel]:
    return [
        events("By policy", "Requests a second.", "keel_requests_total", MODELS, "model", unit="reqps"),
        events(
            "How they ended",
            "finished; blocked by a guard; aborted by the caller; failed.",
            "keel_requests_total",
            MODELS,
            "state",
            unit="reqps",
        ),
        events(
            "Errors",
            "Failed and aborted requests a second, by error type.",
            f"{DURATION}_count",
            f'{OPS},error_type!=""',
            "error_type",
            unit="reqps",
        ),
    ]


def _latency() -> list[AnyPanel]:
    return [
        graph("Duration", "From a request's arrival to its end.", "s", *quantiles(DURATION, OPS)),
        graph(
            "Duration by policy, mean",
            "The mean, which is what capacity pays for; quantiles are beside it.",
            "s",
            Query(mean(DURATION, OPS, "gen_ai_request_model"), "{{gen_ai_request_model}}"),
        ),
        graph(
            "Time to first token",
            "Streams only: what the guards hold back counts.",
            "s",
            *quantiles(FIRST, OPS),
        ),
        heat("Durations", "The distribution over time.", "s", DURATION, OPS),
        graph(
            "Time in Keel itself",
            "What a request spent in the gateway: its duration without the engine and the caller.",
            "s",
            *quantiles("keel_overhead_seconds", MODELS),
            width=12,
        ),
    ]


def _tokens() -> list[AnyPanel]:
    kind = "gen_ai_token_type"
    return [
        graph(
            "Tokens a second",
            "As the engine counted them.",
            "suffix: tokens/s",
            Query(rate(f"{TOKENS}_sum", OPS, kind), "{{gen_ai_token_type}}"),
            width=12,
        ),
        graph(
            "Tokens a request, mean",
            "Prompt and reply.",
            "suffix: tokens",
            Query(mean(TOKENS, OPS, kind), "{{gen_ai_token_type}}"),
            width=12,
        ),
    ]


def _door() -> list[AnyPanel]:
    return [
        events(
            "HTTP calls",
            "Every route, also health and metrics; 499: the caller left.",
            "keel_http_requests_total",
            HERE,
            "route, status",
            unit="reqps",
        ),
        events(
            "Turned away",
            "Refused before anything was done: not ready, overloaded, over a limit.",
            "keel_requests_rejected_total",
            HERE,
            "reason",
            unit="reqps",
        ),
        graph(
            "In flight",
            "Calls being answered.",
            "short",
            Query(f"sum by (instance) (keel_http_requests_in_flight{{{HERE}}})", "{{instance}}"),
            stack=True,
        ),
    ]
