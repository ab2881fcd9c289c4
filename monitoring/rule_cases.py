"""For every alert: series that fire it and then go on so that it clears, for promtool's unit tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent / "prometheus"
RULES = HERE / "rules" / "alerts.yaml"
TESTS = HERE / "tests" / "alerts.yaml"
KEEL = {"instance": "gw:8000", "job": "keel"}
HEAD = "# Written by `python -m monitoring` from monitoring/rule_cases.py; run by `promtool test rules`.\n"


@dataclass(frozen=True, slots=True)
class Case:
    """`quiet`, `firing` and `cleared` are minutes; labels are those of the alert beside its severity."""

    alert: str
    series: Mapping[str, str]
    labels: Mapping[str, str]
    firing: int
    cleared: int
    quiet: int = 0
    note: str = ""


def _series(metric: str, **labels: str) -> str:
    """A series of the gateway's."""
    told = ",".join(f'{name}="{value}"' for name, value in {**labels, **KEEL}.items())
    return f"{metric}{{{told}}}"


def _one(
    alert: str,
    metric: str,
    values: str,
    *,
    firing: int,
    cleared: int,
    quiet: int = 0,
    by: tuple[str, ...] | None = None,
    note: str = "",
    **labels: str,
) -> Case:
    """A case of one series, all of whose labels the alert has, or those that its rule sums `by`."""
    has = {**KEEL, **labels}
    kept = has if by is None else {name: has[name] for name in by}
    return Case(alert, {_series(metric, **labels): values}, kept, firing, cleared, quiet, note)


def _requests(**states: str) -> dict[str, str]:
    """The requests of the policy `chat`, by how they ended."""
    return {
        _series("keel_requests_total", model="chat", state=state): values for state, values in states.items()
    }


def _scores(**outcomes: str) -> dict[str, str]:
    """The replies of one arm for its experiment's scorer, by how they ended."""
    return {
        _series("keel_experiment_scores_total", **ARM, outcome=o): values for o, values in outcomes.items()
    }


def _firsts(**rates: str) -> dict[str, str]:
    """First tokens of streams, by the bounds of their buckets."""
    labels = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "chat"}
    name = "gen_ai_server_time_to_first_token_seconds_bucket"
    return {_series(name, **labels, le=bound): values for bound, values in rates.items()}


def _rewards(which: str, positive: str, negative: str, count: str) -> dict[str, str]:
    """Sums and number of the rewards of `which` replies."""
    of = {"model": "chat", "which": which}
    return {
        _series("keel_reward_sum_total", **of, sign="positive"): positive,
        _series("keel_reward_sum_total", **of, sign="negative"): negative,
        _series("keel_reward_score_count", **of): count,
    }


def _drift(psi: str, ks: str) -> dict[str, str]:
    """Drift of rewards, over samples that suffice."""
    of = {"model": "chat", "signal": "reward"}
    return {
        _series("keel_drift_psi", **of): psi,
        _series("keel_drift_ks", **of): ks,
        _series("keel_drift_samples", **of, which="reference"): "2000x60",
        _series("keel_drift_samples", **of, which="window"): "500x60",
    }


ARM = {"experiment": "tone", "arm": "new"}

CASES = (
    Case("KeelGone", {_series("up"): "1x3 _x10 1x5"}, {}, quiet=3, firing=12, cleared=16),
    _one("KeelDown", "up", "1x5 0x5 1x10", firing=9, cleared=12),
    _one("KeelNotReady", "keel_ready", "1x2 0x10 1x10", firing=9, cleared=15),
    Case(
        "KeelRequestsFail",
        _requests(finished="0+60x60", failed="0+10x20 200x40"),
        {"model": "chat"},
        firing=15,
        cleared=30,
    ),
    Case(
        "KeelSlowFirstToken",
        _firsts(**{"1": "0x20 0+60x40", "7.5": "0+60x20 1200+60x40", "+Inf": "0+60x20 1200+60x40"}),
        {"gen_ai_request_model": "chat"},
        firing=18,
        cleared=40,
    ),
    _one(
        "KeelOverloaded",
        "keel_requests_rejected_total",
        "0x3 0+60x12 720x20",
        reason="overloaded",
        by=("instance",),
        firing=14,
        cleared=25,
    ),
    _one(
        "KeelOverloaded",
        "keel_engine_refused_total",
        "0x3 0+60x12 720x20",
        reason="Overloaded",
        by=("instance",),
        firing=14,
        cleared=25,
        note="the engine's queue",
    ),
    _one(
        "KeelLimitsUnavailable",
        "keel_requests_rejected_total",
        "0x3 0+5x6 30x20",
        reason="limits_unavailable",
        firing=8,
        cleared=20,
    ),
    _one(
        "KeelPolicyReloadRefused", "keel_policy_last_reload_successful", "1x3 0x10 1x5", firing=10, cleared=15
    ),
    _one(
        "KeelGuardErrors",
        "keel_guard_errors_total",
        "_x4 1x30",
        guard="pii",
        reason="timeout",
        stage="input",
        by=("guard", "reason"),
        firing=6,
        cleared=15,
        note="the first error that there ever was",
    ),
    _one(
        "KeelGuardErrors",
        "keel_guard_errors_total",
        "7x10 8x30",
        guard="pii",
        reason="timeout",
        stage="input",
        by=("guard", "reason"),
        quiet=9,
        firing=12,
        cleared=25,
        note="another one",
    ),
    _one(
        "KeelGuardWorkersDie",
        "keel_guard_worker_events_total",
        "0x3 0+1x6 6x40",
        event="died",
        by=("instance",),
        firing=12,
        cleared=40,
    ),
    Case(
        "KeelBlocksRise",
        _requests(finished="0+60x400", blocked="0+1x200 200+20x30 800+1x170"),
        {"model": "chat"},
        quiet=190,
        firing=225,
        cleared=260,
    ),
    Case(
        "KeelFalseBlocks",
        {
            _series("keel_reviews_total", policy="chat", decision="overturned"): "0+1x30 30x300",
            _series("keel_reviews_total", policy="chat", decision="upheld"): "0+1x30 30x60 30+5x200",
        },
        {"policy": "chat"},
        firing=88,
        cleared=130,
    ),
    _one(
        "KeelReviewsWait", "keel_review_queue", "5x10 150x80 20x10", by=("instance",), firing=75, cleared=95
    ),
    Case(
        "KeelDrift",
        _drift(psi="0.05x10 0.6x30 0.05x10", ks="0.03x10 0.4x30 0.03x10"),
        {**KEEL, "model": "chat", "signal": "reward"},
        quiet=9,
        firing=30,
        cleared=45,
    ),
    _one(
        "KeelRewardErrors",
        "keel_rerank_errors_total",
        "_x2 1+1x15 16x20",
        model="chat",
        reason="timeout",
        by=("model", "reason"),
        firing=12,
        cleared=30,
    ),
    _one(
        "KeelReviseErrors",
        "keel_revise_errors_total",
        "_x2 1+1x15 16x20",
        model="chat",
        reason="judge",
        by=("model", "reason"),
        firing=12,
        cleared=30,
    ),
    Case(
        "KeelRerankGainsNothing",
        {
            **_rewards("given", "0+20x80 1600+50x99", "0+10x300", "0+10x300"),
            **_rewards("all", "0+60x300", "0+20x300", "0+40x300"),
        },
        {"model": "chat"},
        firing=75,
        cleared=130,
    ),
    _one(
        "KeelArmRolledBack",
        "keel_experiment_changes_total",
        "_x4 1x100",
        experiment="tone",
        action="roll_back",
        firing=6,
        cleared=70,
    ),
    Case(
        "KeelScorerFailing",
        _scores(scored="0+60x60", failed="0+1x10 10+30x20 610x40", unfit="0+60x60"),
        ARM,
        quiet=9,
        firing=25,
        cleared=50,
    ),
    Case(
        "KeelScorerFailing",
        _scores(dropped="0x2 3x10 3+30x20 603x40"),
        ARM,
        quiet=12,
        firing=25,
        cleared=50,
        note="nothing is said of three replies",
    ),
    _one(
        "KeelCheckpointBehind",
        "keel_checkpoint_alias_behind",
        "0x3 1x10 0x5",
        alias="chat",
        firing=10,
        cleared=15,
    ),
    _one("KeelEngineDown", "keel_vllm_ready", "1x3 0x5 1x5", name="demo", firing=7, cleared=11),
    _one(
        "KeelEngineRestarts",
        "keel_vllm_restarts",
        "0x5 0+1x6 6x40",
        name="demo",
        quiet=4,
        firing=15,
        cleared=40,
    ),
    _one(
        "KeelCircuitOpen", "keel_upstream_circuit", "0x3 2x4 1 0x10", upstream="gpu-1", firing=6, cleared=10
    ),
    _one(
        "KeelEngineQueue",
        "vllm:num_requests_waiting",
        "0x5 40x20 0x20",
        model_name="demo",
        firing=20,
        cleared=40,
    ),
    _one(
        "KeelCacheFull",
        "vllm:kv_cache_usage_perc",
        "0.5x5 0.99x20 0.5x20",
        model_name="demo",
        firing=20,
        cleared=30,
    ),
    _one("KeelAuditFailing", "keel_audit_failing", "0x3 1x5 0x5", firing=7, cleared=11),
    _one("KeelAuditShortened", "keel_audit_sequence", "100+1x10 5+1x120", quiet=9, firing=13, cleared=80),
    _one("KeelStoreBehind", "keel_store_lag_seconds", "0x3 0+60x15 0x5", firing=15, cleared=22),
    _one("KeelStoreDrops", "keel_store_dropped_total", "_x4 3x30", reason="full", firing=6, cleared=15),
    Case(
        "KeelTrainingStalled",
        {
            'keel_train_updated_timestamp_seconds{run="dpo",instance="node:9100"}': "0x60 3600x10",
            'keel_train_finished{run="dpo",instance="node:9100"}': "0x80",
        },
        {"instance": "node:9100", "run": "dpo"},
        quiet=20,
        firing=50,
        cleared=65,
    ),
)


def alerts() -> dict[str, dict[str, Any]]:
    """The alert rules, by name."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def unit_tests() -> str:
    """promtool's file."""
    known = alerts()
    tests = [_test(case, known[case.alert]) for case in CASES]
    body = {"rule_files": ["../rules/alerts.yaml"], "evaluation_interval": "1m", "tests": tests}
    return HEAD + yaml.safe_dump(body, sort_keys=False, width=110, allow_unicode=True)


def _test(case: Case, rule: dict[str, Any]) -> dict[str, Any]:
    expected = {
        "exp_labels": {**case.labels, **rule["labels"]},
        "exp_annotations": {
            name: re.sub(r"{{ \$labels\.(\w+) }}", lambda found: case.labels[found[1]], text)
            for name, text in rule["annotations"].items()
        },
    }
    times: tuple[tuple[int, list[Any]], ...] = (
        (case.quiet, []),
        (case.firing, [expected]),
        (case.cleared, []),
    )
    return {
        "name": f"{case.alert}: {case.note}" if case.note else case.alert,
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": alerts_}
            for minute, alerts_ in times
        ],
    }
