"""Alignment: what reranking chose and gained, what critique found, and what both cost."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import (
    MODELS,
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
    rate,
    ratio,
)

SCORE = "keel_reward_score"
GIVEN = f'{MODELS},which="given"'
EVERY = f'{MODELS},which="all"'
REPLIES = "keel_revise_replies_total"
CRITICISED = f'{MODELS},outcome!="unexamined"'
REVISED = f'{MODELS},outcome=~"revised|best"'


def alignment() -> Dashboard:
    """The dashboard."""
    return board(
        "keel-alignment",
        "Keel / Alignment",
        "Rewards, reranking, critique and revision while the model answers.",
        [
            Row("At a glance", _glance()),
            Row("Rewards", _rewards()),
            Row("Reranking", _reranking()),
            Row("Critique and revision", _revision()),
            Row("Drift", _drift()),
        ],
        [("model", "keel_requests_total", "model"), ("instance", "keel_ready", "instance")],
    )


def _reward_mean(where: str, by: str = "") -> str:
    """The mean reward. Its sum is kept in two counters, for it may be negative."""
    gained, lost = (
        rate("keel_reward_sum_total", f'{where},sign="{sign}"', by) for sign in ("positive", "negative")
    )
    return ratio(f"({gained}) - ({lost})", rate(f"{SCORE}_count", where, by))


def _gain(by: str = "") -> str:
    return f"{_reward_mean(GIVEN, by)} - {_reward_mean(EVERY, by)}"


def _glance() -> list[AnyPanel]:
    return [
        number(
            "Reward, mean", "Of the replies that callers got.", "none", Query(_reward_mean(GIVEN)), decimals=2
        ),
        number(
            "Gain from reranking",
            "Mean reward of what was given, less that of all candidates: what reranking is worth.",
            "none",
            Query(_gain()),
            steps=((None, "red"), (0, "green")),
            decimals=2,
        ),
        number(
            "Tokens for one",
            "Completion tokens generated for each that a caller got: what reranking costs.",
            "suffix: ×",
            Query(
                ratio(
                    rate("keel_rerank_tokens_total", f'{MODELS},kind="generated"'),
                    rate("keel_rerank_tokens_total", f'{MODELS},kind="given"'),
                )
            ),
            decimals=1,
        ),
        number(
            "Revised",
            "Share of the criticised replies that were revised.",
            "percentunit",
            Query(ratio(f"({rate(REPLIES, REVISED)} or vector(0))", rate(REPLIES, CRITICISED))),
        ),
        number(
            "Rounds, mean",
            "Revisions of a criticised reply.",
            "none",
            Query(mean("keel_revise_rounds", MODELS)),
            decimals=2,
        ),
        number(
            "Errors",
            "Candidates without a score, and replies not criticised to the end, a second.",
            "ops",
            Query(
                f"({rate('keel_rerank_errors_total', MODELS)} or vector(0))"
                f" + ({rate('keel_revise_errors_total', MODELS)} or vector(0))"
            ),
            steps=((None, "green"), (0.001, "red")),
        ),
    ]


def _rewards() -> list[AnyPanel]:
    return [
        heat("Rewards of the replies given", "The distribution over time.", "none", SCORE, GIVEN, width=8),
        graph(
            "Reward, mean",
            "Of what was given and of all candidates; the difference is the gain.",
            "none",
            Query(_reward_mean(MODELS, "model, which"), "{{model}} {{which}}"),
            lowest=None,
        ),
        graph(
            "Reward of the replies given, quantiles",
            "A falling tenth percentile shows before the mean does.",
            "none",
            *(Query(quantile(q, SCORE, GIVEN), f"p{q * 100:g}") for q in (0.1, 0.5, 0.9)),
            lowest=None,
        ),
    ]


def _reranking() -> list[AnyPanel]:
    return [
        events(
            "Candidates",
            "chosen; passed over for a better one; blocked by a guard.",
            "keel_rerank_candidates_total",
            MODELS,
            "outcome",
        ),
        graph(
            "Gain by policy",
            "Mean reward of what was given, less that of all candidates.",
            "none",
            Query(_gain("model"), "{{model}}"),
            lowest=None,
        ),
        graph(
            "Time",
            "To generate candidates, and to examine and score them: 95th percentiles.",
            "s",
            Query(quantile(0.95, "keel_rerank_duration_seconds", MODELS, "phase"), "{{phase}} p95"),
        ),
        graph(
            "Tokens of reranking",
            "Generated to choose from, and given.",
            "suffix: tokens/s",
            Query(rate("keel_rerank_tokens_total", MODELS, "kind"), "{{kind}}"),
        ),
        graph(
            "Errors and refusals",
            "Candidates that could not be scored; choices of which none was good enough.",
            "ops",
            Query(rate("keel_rerank_errors_total", MODELS, "model, reason"), "{{model}} {{reason}}"),
            Query(rate("keel_rerank_refused_total", MODELS, "model"), "{{model}} refused"),
        ),
        events(
            "Pairs kept of reranking",
            "Best and worst candidates, by what became of them as preference data.",
            "keel_rerank_pairs_total",
            MODELS,
            "outcome",
        ),
    ]


def _revision() -> list[AnyPanel]:
    return [
        events("Replies", "By what critique and revision made of them.", REPLIES, MODELS, "outcome"),
        graph(
            "Rounds, mean",
            "Revisions of a criticised reply.",
            "none",
            Query(mean("keel_revise_rounds", MODELS, "model"), "{{model}}"),
        ),
        graph(
            "Violations",
            "Principles that replies violated before any revision, the ten most frequent.",
            "ops",
            Query(f"topk(10, {rate('keel_revise_violations_total', MODELS, 'principle')})", "{{principle}}"),
        ),
        graph(
            "Time added",
            "95th percentile of what critique and revision added to a reply.",
            "s",
            Query(quantile(0.95, "keel_revise_duration_seconds", MODELS, "model"), "{{model}} p95"),
        ),
        events(
            "Tokens of revision",
            "What judge and reviser cost, prompts included.",
            "keel_revise_tokens_total",
            MODELS,
            "role",
            unit="suffix: tokens/s",
        ),
        graph(
            "Errors, and pairs kept",
            "Replies not criticised or revised to the end; revised pairs as preference data.",
            "ops",
            Query(rate("keel_revise_errors_total", MODELS, "model, reason"), "{{model}} {{reason}}"),
            Query(rate("keel_revise_pairs_total", MODELS, "outcome"), "pairs {{outcome}}"),
        ),
    ]


def _drift() -> list[AnyPanel]:
    where = f'{MODELS},signal=~"reward|tokens_out"'
    return [
        graph(
            "Drift (PSI)",
            "Of rewards and reply lengths, against the reference. Below 0.1: none; above 0.25: look at it.",
            "none",
            Query(f"max by (model, signal) (keel_drift_psi{{{where}}})", "{{model}} {{signal}}"),
            width=12,
            limit=0.25,
        ),
        graph(
            "Samples",
            "In the window and in the reference: too few, and no drift is told.",
            "short",
            Query(
                f"sum by (model, signal, which) (keel_drift_samples{{{where}}})",
                "{{model}} {{signal}} {{which}}",
            ),
            width=12,
        ),
    ]
