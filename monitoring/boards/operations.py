"""The gateway itself: what it serves, its memory, the store and the audit log."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import HERE, AnyPanel, Query, Row, board, events, graph, listing, quantiles


def operations() -> Dashboard:
    """The dashboard."""
    return board(
        "keel-operations",
        "Keel / Operations",
        "Gateways: health, memory, policies, store, audit log.",
        [
            Row("Processes", _processes()),
            Row("What is served", _served()),
            Row("Store and audit log", _stores()),
        ],
        [("instance", "keel_ready", "instance")],
    )


def _processes() -> list[AnyPanel]:
    return [
        graph(
            "Ready",
            "1 while a gateway takes requests.",
            "short",
            Query(f"keel_ready{{{HERE}}}", "{{instance}}"),
            width=6,
        ),
        graph(
            "Memory",
            "Resident, of the gateway's process; guard workers and engines have their own.",
            "bytes",
            Query(f"process_resident_memory_bytes{{{HERE}}} and on (instance) keel_ready", "{{instance}}"),
            width=6,
        ),
        graph(
            "Processor",
            "Cores in use.",
            "short",
            Query(
                f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval]) and on (instance) keel_ready",
                "{{instance}}",
            ),
            width=6,
        ),
        graph(
            "Open files",
            "Sockets are most of them; they must not grow with the requests that were.",
            "short",
            Query(f"process_open_fds{{{HERE}}} and on (instance) keel_ready", "{{instance}}"),
            width=6,
        ),
    ]


def _served() -> list[AnyPanel]:
    return [
        listing("Policies", "By name and digest.", f"keel_policy_info{{{HERE}}}", width=8),
        listing("Checkpoints", "By name and digest.", f"keel_checkpoint_info{{{HERE}}}", width=8),
        graph(
            "Policy reloads",
            "An hour, by outcome; below 1: the last one was refused, and the old policies stand.",
            "short",
            Query(f"sum by (outcome) (increase(keel_policy_reloads_total{{{HERE}}}[1h]))", "{{outcome}}"),
            Query(f"min(keel_policy_last_reload_successful{{{HERE}}})", "last one taken over"),
        ),
    ]


def _stores() -> list[AnyPanel]:
    return [
        events("Rows", "Committed a second, by table.", "keel_store_rows_total", HERE, "table"),
        graph(
            "Commit time",
            "Of a transaction that writes rows.",
            "s",
            *quantiles("keel_store_commit_duration_seconds", HERE),
        ),
        graph(
            "Behind",
            "How long the oldest row has waited, and what waits on disk.",
            "s",
            Query(f"max by (instance) (keel_store_lag_seconds{{{HERE}}})", "{{instance}} lag"),
        ),
        graph(
            "Waiting on disk",
            "Rows that are not committed yet.",
            "bytes",
            Query(f"sum by (instance) (keel_store_spool_bytes{{{HERE}}})", "{{instance}}"),
        ),
        events("Audit records", "Written a second, by action.", "keel_audit_records_total", HERE, "action"),
        graph(
            "Audit log",
            "1 while it can't be written; calls that change something are refused meanwhile.",
            "short",
            Query(f"max by (instance) (keel_audit_failing{{{HERE}}})", "{{instance}} failing"),
        ),
    ]
