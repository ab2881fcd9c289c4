"""Experiments and checkpoints: who gets which arm, what people say, what was swapped."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import HERE, AnyPanel, Query, Row, board, events, graph, listing, rate, ratio, shares

WHERE = 'experiment=~"$experiment",instance=~"$instance"'
EXPOSURES = "keel_experiment_exposures_total"
SCORES = "keel_experiment_scores_total"


def experiments() -> Dashboard:
    """The dashboard."""
    return board(
        "keel-experiments",
        "Keel / Experiments",
        "Arms and their weights, feedback, and the checkpoints that were swapped.",
        [
            Row("Arms", _arms()),
            Row("Changes and shadows", _changes()),
            Row("Scorers", _scorers()),
            Row("Feedback", _feedback()),
            Row("Checkpoints", _checkpoints()),
        ],
        [("experiment", EXPOSURES, "experiment"), ("instance", "keel_ready", "instance")],
    )


def _arms() -> list[AnyPanel]:
    return [
        events(
            "Exposures",
            "Requests assigned to an arm, a second.",
            EXPOSURES,
            WHERE,
            "experiment, arm",
            unit="reqps",
        ),
        graph(
            "Share of each arm",
            "Compare it with the weights: a lasting difference is a sample-ratio mismatch.",
            "percentunit",
            Query(shares(EXPOSURES, WHERE, "experiment", "arm"), "{{experiment}} {{arm}}"),
        ),
        graph(
            "Weights",
            "What the experiment says; steps of a ramp show here.",
            "percentunit",
            Query(f"max by (experiment, arm) (keel_experiment_weight{{{WHERE}}})", "{{experiment}} {{arm}}"),
        ),
    ]


def _changes() -> list[AnyPanel]:
    return [
        graph(
            "Changes",
            "Steps of ramps, promotions, roll-backs since the gateways started, by themselves or by people.",
            "short",
            Query(
                f"sum by (experiment, action) (keel_experiment_changes_total{{{WHERE}}})",
                "{{experiment}} {{action}}",
            ),
            width=12,
        ),
        events(
            "Shadow arms",
            "Copies of requests, by how they ended; skipped: no room was left for them.",
            "keel_experiment_shadows_total",
            WHERE,
            "experiment, arm, outcome",
            unit="reqps",
            width=12,
        ),
    ]


def _scorers() -> list[AnyPanel]:
    lost = rate(SCORES, f'{WHERE},outcome=~"failed|dropped|late"', "experiment, arm")
    fit = rate(SCORES, f'{WHERE},outcome!="unfit"', "experiment, arm")
    return [
        events(
            "Replies for scorers",
            "By how they ended. dropped: no room; late: waited too long; unfit: without text or a request's.",
            SCORES,
            WHERE,
            "experiment, outcome",
            width=12,
        ),
        graph(
            "Without a score",
            "Share of an arm's replies that are fit to be scored: if one arm loses more, rewards are biased.",
            "percentunit",
            Query(ratio(f"{lost} or 0 * {fit}", fit), "{{experiment}} {{arm}}"),
            width=12,
            limit=0.1,
        ),
    ]


def _feedback() -> list[AnyPanel]:
    return [
        graph(
            "By kind",
            "Feedback an hour.",
            "short",
            Query(f"sum by (kind) (increase(keel_feedback_total{{{HERE}}}[1h]))", "{{kind}}"),
            width=12,
            stack=True,
        ),
        graph(
            "By policy",
            "Feedback an hour.",
            "short",
            Query(f"sum by (policy) (increase(keel_feedback_total{{{HERE}}}[1h]))", "{{policy}}"),
            width=12,
            stack=True,
        ),
    ]


def _checkpoints() -> list[AnyPanel]:
    return [
        graph(
            "Swaps",
            "Changes of an alias since the gateways started, by outcome; too rare for a rate.",
            "short",
            Query(
                f"sum by (alias, outcome) (keel_checkpoint_swaps_total{{{HERE}}})",
                "{{alias}} {{outcome}}",
            ),
        ),
        graph(
            "Time of a swap, p95",
            "From the order to new requests going to the new checkpoint, since the gateways started.",
            "s",
            Query(
                f"histogram_quantile(0.95, sum by (le) (keel_checkpoint_swap_seconds_bucket{{{HERE}}}))",
                "p95",
            ),
        ),
        listing("Checkpoints served", "By name and digest.", f"keel_checkpoint_info{{{HERE}}}", width=8),
    ]
