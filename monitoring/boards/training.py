"""Training runs, from `keel-train figures`."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import AnyPanel, Query, Row, board, graph

RUN = 'run=~"$run"'


def training() -> Dashboard:
    """The dashboard."""
    return board(
        "keel-training",
        "Keel / Training runs",
        "Figures of metrics.jsonl, exported by `keel-train figures` for node-exporter's textfile collector.",
        [Row("Progress", _progress()), Row("Figures", _figures())],
        [("run", "keel_train_step", "run"), ("figure", "keel_train_figure", "figure")],
    )


def _figure(names: str, by: str = "run, figure") -> str:
    return f'max by ({by}) (keel_train_figure{{{RUN},figure=~"{names}"}})'


def _progress() -> list[AnyPanel]:
    age = f"time() - max by (run) (keel_train_updated_timestamp_seconds{{{RUN}}})"
    unfinished = f"max by (run) (keel_train_finished{{{RUN}}}) == 0"
    return [
        graph(
            "Step",
            "The last step with figures.",
            "short",
            Query(f"max by (run) (keel_train_step{{{RUN}}})", "{{run}}"),
        ),
        graph(
            "Silence",
            "How long ago a run last wrote a figure, while it is not finished.",
            "s",
            Query(f"({age}) and ({unfinished})", "{{run}}"),
        ),
        graph(
            "Finished",
            "1 once the result is there.",
            "short",
            Query(f"max by (run) (keel_train_finished{{{RUN}}})", "{{run}}"),
        ),
    ]


def _figures() -> list[AnyPanel]:
    return [
        graph(
            "Loss",
            "Training and held-out.",
            "none",
            Query(_figure(".*loss"), "{{run}} {{figure}}"),
            lowest=None,
        ),
        graph(
            "Rewards and accuracy",
            "What preference and reinforcement methods report of them.",
            "none",
            Query(_figure(".*(reward|accurac|margin).*"), "{{run}} {{figure}}"),
            lowest=None,
        ),
        graph(
            "KL and entropy",
            "How far the policy is from its reference.",
            "none",
            Query(_figure(".*(kl|entropy).*"), "{{run}} {{figure}}"),
            lowest=None,
        ),
        graph("Learning rate", "As the schedule has it.", "none", Query(_figure("learning_rate"), "{{run}}")),
        graph("Gradient norm", "Before clipping.", "none", Query(_figure("grad_norm"), "{{run}}")),
        graph(
            "Chosen figures",
            "Whatever the variable Figure says.",
            "none",
            Query(
                f'max by (run, figure) (keel_train_figure{{{RUN},figure=~"$figure"}})', "{{run}} {{figure}}"
            ),
            lowest=None,
        ),
    ]
