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
ON = 'instance="gw:8000",job="keel"'
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


def _requests(state: str, values: str) -> dict[str, str]:
    return {f'keel_requests_total{{model="chat",state="{state}",{ON}}}': values}


def _buckets(metric: str, labels: str, rates: Mapping[str, str]) -> dict[str, str]:
    return {f'{metric}_bucket{{{labels},le="{bound}",{ON}}}': values for bound, values in rates.items()}


FIRST = "gen_ai_server_time_to_first_token_seconds"
GIVEN = 'model="chat",which="given"'
ARM = 'experiment="tone",arm="new"'
OPERATION = 'gen_ai_operation_name="chat",gen_ai_request_model="chat"'

CASES = (
    Case("KeelGone", {f"up{{{ON}}}": "1x3 _x10 1x5"}, {}, quiet=3, firing=12, cleared=16),
    Case("KeelDown", {f"up{{{ON}}}": "1x5 0x5 1x10"}, KEEL, firing=9, cleared=12),
    Case("KeelNotReady", {f"keel_ready{{{ON}}}": "1x2 0x10 1x10"}, KEEL, firing=9, cleared=15),
    Case(
        "KeelRequestsFail",
        {**_requests("finished", "0+60x60"), **_requests("failed", "0+10x20 200x40")},
        {"model": "chat"},
        firing=15,
        cleared=30,
    ),
    Case(
        "KeelSlowFirstToken",
        _buckets(
            FIRST, OPERATION, {"1": "0x20 0+60x40", "7.5": "0+60x20 1200+60x40", "+Inf": "0+60x20 1200+60x40"}
        ),
        {"gen_ai_request_model": "chat"},
        firing=18,
        cleared=40,
    ),
    Case(
        "KeelOverloaded",
        {f'keel_requests_rejected_total{{reason="overloaded",{ON}}}': "0x3 0+60x12 720x20"},
        {"instance": "gw:8000"},
        firing=14,
        cleared=25,
    ),
    Case(
        "KeelOverloaded",
        {f'keel_engine_refused_total{{reason="QueueFull",{ON}}}': "0x3 0+60x12 720x20"},
        {"instance": "gw:8000"},
        firing=14,
        cleared=25,
        note="the engine's queue",
    ),
    Case(
        "KeelLimitsUnavailable",
        {f'keel_requests_rejected_total{{reason="limits_unavailable",{ON}}}': "0x3 0+5x6 30x20"},
        {**KEEL, "reason": "limits_unavailable"},
        firing=8,
        cleared=20,
    ),
    Case(
        "KeelPolicyReloadRefused",
        {f"keel_policy_last_reload_successful{{{ON}}}": "1x3 0x10 1x5"},
        KEEL,
        firing=10,
        cleared=15,
    ),
    Case(
        "KeelGuardErrors",
        {f'keel_guard_errors_total{{guard="pii",reason="timeout",stage="input",{ON}}}': "_x4 1x30"},
        {"guard": "pii", "reason": "timeout"},
        firing=6,
        cleared=15,
        note="the first error that there ever was",
    ),
    Case(
        "KeelGuardErrors",
        {f'keel_guard_errors_total{{guard="pii",reason="timeout",stage="input",{ON}}}': "7x10 8x30"},
        {"guard": "pii", "reason": "timeout"},
        quiet=9,
        firing=12,
        cleared=25,
        note="another one",
    ),
    Case(
        "KeelGuardWorkersDie",
        {f'keel_guard_worker_events_total{{event="died",{ON}}}': "0x3 0+1x6 6x40"},
        {"instance": "gw:8000"},
        firing=12,
        cleared=40,
    ),
    Case(
        "KeelBlocksRise",
        {**_requests("finished", "0+60x400"), **_requests("blocked", "0+1x200 200+20x30 800+1x170")},
        {"model": "chat"},
        quiet=190,
        firing=225,
        cleared=260,
    ),
    Case(
        "KeelFalseBlocks",
        {
            f'keel_reviews_total{{policy="chat",decision="overturned",{ON}}}': "0+1x30 30x300",
            f'keel_reviews_total{{policy="chat",decision="upheld",{ON}}}': "0+1x30 30x60 30+5x200",
        },
        {"policy": "chat"},
        firing=88,
        cleared=130,
    ),
    Case(
        "KeelReviewsWait",
        {f"keel_review_queue{{{ON}}}": "5x10 150x80 20x10"},
        {"instance": "gw:8000"},
        firing=75,
        cleared=95,
    ),
    Case(
        "KeelDrift",
        {
            f'keel_drift_psi{{model="chat",signal="reward",{ON}}}': "0.05x10 0.6x30 0.05x10",
            f'keel_drift_ks{{model="chat",signal="reward",{ON}}}': "0.03x10 0.4x30 0.03x10",
            f'keel_drift_samples{{model="chat",signal="reward",which="reference",{ON}}}': "2000x60",
            f'keel_drift_samples{{model="chat",signal="reward",which="window",{ON}}}': "500x60",
        },
        {**KEEL, "model": "chat", "signal": "reward"},
        quiet=9,
        firing=30,
        cleared=45,
    ),
    Case(
        "KeelRewardErrors",
        {f'keel_rerank_errors_total{{model="chat",reason="timeout",{ON}}}': "_x2 1+1x15 16x20"},
        {"model": "chat", "reason": "timeout"},
        firing=12,
        cleared=30,
    ),
    Case(
        "KeelReviseErrors",
        {f'keel_revise_errors_total{{model="chat",reason="judge",{ON}}}': "_x2 1+1x15 16x20"},
        {"model": "chat", "reason": "judge"},
        firing=12,
        cleared=30,
    ),
    Case(
        "KeelRerankGainsNothing",
        {
            f'keel_reward_sum_total{{{GIVEN},sign="positive",{ON}}}': "0+20x80 1600+50x99",
            f'keel_reward_sum_total{{{GIVEN},sign="negative",{ON}}}': "0+10x300",
            f'keel_reward_score_count{{model="chat",which="given",{ON}}}': "0+10x300",
            f'keel_reward_sum_total{{model="chat",which="all",sign="positive",{ON}}}': "0+60x300",
            f'keel_reward_sum_total{{model="chat",which="all",sign="negative",{ON}}}': "0+20x300",
            f'keel_reward_score_count{{model="chat",which="all",{ON}}}': "0+40x300",
        },
        {"model": "chat"},
        firing=75,
        cleared=130,
    ),
    Case(
        "KeelArmRolledBack",
        {f'keel_experiment_changes_total{{experiment="tone",action="roll_back",{ON}}}': "_x4 1x100"},
        {**KEEL, "experiment": "tone", "action": "roll_back"},
        firing=6,
        cleared=70,
    ),
    Case(
        "KeelScorerFailing",
        {
            f'keel_experiment_scores_total{{{ARM},outcome="scored",{ON}}}': "0+60x60",
            f'keel_experiment_scores_total{{{ARM},outcome="failed",{ON}}}': "0+1x10 10+30x20 610x40",
            f'keel_experiment_scores_total{{{ARM},outcome="unfit",{ON}}}': "0+60x60",
        },
        {"experiment": "tone", "arm": "new"},
        quiet=9,
        firing=25,
        cleared=50,
    ),
    Case(
        "KeelScorerFailing",
        {f'keel_experiment_scores_total{{{ARM},outcome="dropped",{ON}}}': "0x2 3x10 3+30x20 603x40"},
        {"experiment": "tone", "arm": "new"},
        quiet=12,
        firing=25,
        cleared=50,
        note="nothing is said of three replies",
    ),
    Case(
        "KeelCheckpointBehind",
        {f'keel_checkpoint_alias_behind{{alias="chat",{ON}}}': "0x3 1x10 0x5"},
        {**KEEL, "alias": "chat"},
        firing=10,
        cleared=15,
    ),
    Case(
        "KeelEngineDown",
        {f'keel_vllm_ready{{name="demo",{ON}}}': "1x3 0x5 1x5"},
        {**KEEL, "name": "demo"},
        firing=7,
        cleared=11,
    ),
    Case(
        "KeelEngineRestarts",
        {f'keel_vllm_restarts{{name="demo",{ON}}}': "0x5 0+1x6 6x40"},
        {**KEEL, "name": "demo"},
        quiet=4,
        firing=15,
        cleared=40,
    ),
    Case(
        "KeelCircuitOpen",
        {f'keel_upstream_circuit{{upstream="gpu-1",{ON}}}': "0x3 2x4 1 0x10"},
        {**KEEL, "upstream": "gpu-1"},
        firing=6,
        cleared=10,
    ),
    Case(
        "KeelEngineQueue",
        {f'vllm:num_requests_waiting{{model_name="demo",{ON}}}': "0x5 40x20 0x20"},
        {**KEEL, "model_name": "demo"},
        firing=20,
        cleared=40,
    ),
    Case(
        "KeelCacheFull",
        {f'vllm:kv_cache_usage_perc{{model_name="demo",{ON}}}': "0.5x5 0.99x20 0.5x20"},
        {**KEEL, "model_name": "demo"},
        firing=20,
        cleared=30,
    ),
    Case("KeelAuditFailing", {f"keel_audit_failing{{{ON}}}": "0x3 1x5 0x5"}, KEEL, firing=7, cleared=11),
    Case(
        "KeelAuditShortened",
        {f"keel_audit_sequence{{{ON}}}": "100+1x10 5+1x120"},
        KEEL,
        quiet=9,
        firing=13,
        cleared=80,
    ),
    Case(
        "KeelStoreBehind", {f"keel_store_lag_seconds{{{ON}}}": "0x3 0+60x15 0x5"}, KEEL, firing=15, cleared=22
    ),
    Case(
        "KeelStoreDrops",
        {f'keel_store_dropped_total{{reason="full",{ON}}}': "_x4 3x30"},
        {**KEEL, "reason": "full"},
        firing=6,
        cleared=15,
    ),
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
