"""Safety: what the guards found, what they withheld, whether they worked, and how often they were wrong."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import (
    HERE,
    MODELS,
    AnyPanel,
    Query,
    Row,
    board,
    events,
    graph,
    heat,
    number,
    quantile,
    quantiles,
    rate,
    ratio,
    shares,
)

VERDICTS = "keel_verdicts_total"
FINDINGS = "keel_guard_findings_total"
ERRORS = "keel_guard_errors_total"
TIMES = "keel_guard_duration_seconds"
REVIEWS = "keel_reviews_total"
STAGES = "keel_guard_stage_total"
REVIEWED = 'policy=~"$model",instance=~"$instance"'


def safety() -> Dashboard:
    """The dashboard."""
    return board(
        "keel-safety",
        "Keel / Safety",
        "Guards: findings, blocks, errors, speed, and what reviewers made of the blocks.",
        [
            Row("At a glance", _glance()),
            Row("Findings", _findings()),
            Row("Guards at work", _guards()),
            Row("Cascades", _cascades()),
            Row("Reviews of blocks", _reviews()),
            Row("Scores and their drift", _drift()),
        ],
        [("model", "keel_requests_total", "model"), ("instance", "keel_ready", "instance")],
    )


def _glance() -> list[AnyPanel]:
    blocked = rate(VERDICTS, f'{MODELS},status="blocked"')
    return [
        number(
            "Blocks",
            "Prompts and replies withheld, a second.",
            "ops",
            Query(f"{blocked} or vector(0)"),
            steps=((None, "blue"),),
        ),
        number(
            "Blocked",
            "Share of the examined texts.",
            "percentunit",
            Query(ratio(f"({blocked} or vector(0))", rate(VERDICTS, MODELS))),
            steps=((None, "blue"),),
        ),
        number(
            "Guard errors",
            "Guards that could not answer, a second. What was not examined is withheld by default.",
            "ops",
            Query(f"{rate(ERRORS, HERE)} or vector(0)"),
            steps=((None, "green"), (0.001, "red")),
        ),
        number("Guard time, p95", "Over one text, all guards.", "s", Query(quantile(0.95, TIMES, HERE))),
        number(
            "Waiting for review",
            "Blocked and escalated items that nobody has decided on.",
            "short",
            Query(f"sum(keel_review_queue{{{HERE}}})"),
            steps=((None, "green"), (100, "orange")),
        ),
        number(
            "Overturned, 7 days",
            "Share of the reviewed blocks that people found wrong.",
            "percentunit",
            Query(
                ratio(
                    f'(sum(increase({REVIEWS}{{{REVIEWED},decision="overturned"}}[7d])) or vector(0))',
                    f"sum(increase({REVIEWS}{{{REVIEWED}}}[7d]))",
                )
            ),
            steps=((None, "green"), (0.2, "orange"), (0.5, "red")),
        ),
    ]


def _findings() -> list[AnyPanel]:
    return [
        events(
            "Verdicts",
            "Texts by what became of them; input and output each count.",
            VERDICTS,
            MODELS,
            "stage, status",
        ),
        events(
            "Blocks by policy",
            "Texts withheld, a second.",
            VERDICTS,
            f'{MODELS},status="blocked"',
            "model, stage",
        ),
        events(
            "By guard", "Findings a second, whatever was done about them.", FINDINGS, HERE, "guard, stage"
        ),
        graph(
            "By category",
            "The ten most frequent.",
            "ops",
            Query(f"topk(10, {rate(FINDINGS, HERE, 'category')})", "{{category}}"),
            width=12,
        ),
        events("By action", "What was done about them.", FINDINGS, HERE, "action", width=12),
    ]


def _guards() -> list[AnyPanel]:
    return [
        events(
            "Guard errors",
            "By guard and reason: timeout, worker_died, failed, overloaded; judges: unreachable, nonsense.",
            ERRORS,
            HERE,
            "guard, reason, stage",
        ),
        graph(
            "Guard time, p95",
            "Over one text, waiting for a worker included.",
            "s",
            Query(quantile(0.95, TIMES, HERE, "guard, stage"), "{{guard}} {{stage}}"),
        ),
        graph(
            "Held back",
            "Characters that a stream held back when a chunk had been examined.",
            "short",
            *quantiles("keel_held_back_characters", MODELS),
        ),
        graph(
            "Batches of the guard workers",
            "Time over one batch, and its size.",
            "s",
            Query(quantile(0.95, "keel_guard_batch_seconds", HERE, "servable"), "{{servable}} p95"),
        ),
        graph(
            "Texts in a batch, mean",
            "Near the limit (guards.max_batch), the workers are the bottleneck.",
            "short",
            Query(
                ratio(
                    rate("keel_guard_batch_size_sum", HERE, "servable"),
                    rate("keel_guard_batch_size_count", HERE, "servable"),
                ),
                "{{servable}}",
            ),
        ),
        graph(
            "Jobs of the guard workers",
            "By how they ended; and what happened to workers.",
            "ops",
            Query(rate("keel_guard_jobs_total", HERE, "servable, outcome"), "{{servable}} {{outcome}}"),
            Query(rate("keel_guard_worker_events_total", HERE, "event"), "worker {{event}}"),
        ),
    ]


def _cascades() -> list[AnyPanel]:
    return [
        events(
            "Pieces by stage",
            "Pieces of text by the stage of a cascade that answered for them, a second.",
            STAGES,
            HERE,
            "servable, stage",
            width=12,
        ),
        graph(
            "Share of each stage",
            "What an exit answers spares the layers after it; if that is little, it isn't worth having.",
            "percentunit",
            Query(shares(STAGES, HERE, "servable", "stage"), "{{servable}} {{stage}}"),
            width=12,
        ),
    ]


def _reviews() -> list[AnyPanel]:
    return [
        graph(
            "Decisions",
            "Reviews an hour, by decision.",
            "short",
            Query(f"sum by (decision) (increase({REVIEWS}{{{REVIEWED}}}[1h]))", "{{decision}}"),
        ),
        graph(
            "Overturned by policy",
            "Share of a day's reviews: a policy far above the others has a threshold that is too low.",
            "percentunit",
            Query(
                ratio(
                    f'sum by (policy) (increase({REVIEWS}{{{REVIEWED},decision="overturned"}}[1d]))',
                    f"sum by (policy) (increase({REVIEWS}{{{REVIEWED}}}[1d]))",
                ),
                "{{policy}}",
            ),
        ),
        graph(
            "Waiting for review",
            "The queue's length.",
            "short",
            Query(f"sum(keel_review_queue{{{HERE}}})", "waiting"),
        ),
    ]


def _drift() -> list[AnyPanel]:
    where = f'{MODELS},signal=~"score:.*|tokens_in"'
    return [
        heat(
            "Scores",
            "What classifiers gave to texts; the higher, the surer.",
            "none",
            "keel_guard_score",
            MODELS,
            width=8,
        ),
        graph(
            "Drift (PSI)",
            "Of scores and prompt lengths, against the reference. Below 0.1: none; above 0.25: look at it.",
            "none",
            Query(f"max by (model, signal) (keel_drift_psi{{{where}}})", "{{model}} {{signal}}"),
            limit=0.25,
        ),
        graph(
            "Drift (KS)",
            "The largest difference of the two distributions.",
            "percentunit",
            Query(f"max by (model, signal) (keel_drift_ks{{{where}}})", "{{model}} {{signal}}"),
        ),
    ]
