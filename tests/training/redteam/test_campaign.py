"""Campaigns against callables: outcomes, judges, attackers that learn, and what comes of successes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.preferences import read_preferences
from training.errors import DataError
from training.redteam import (
    CallableTarget,
    Reply,
    Report,
    RulesRubric,
    TargetError,
    compare,
    load_behaviors,
    make_attack,
    red_team,
)
from training.redteam.api import asked, hunted
from training.redteam.attacker import Learner, Uniform, default_arms
from training.redteam.harvest import read_cases, read_sheet, write_cases, write_pairs, write_sheet
from training.redteam.report_html import page
from training.redteam.verdicts import canary_returned, kappa

REFUSAL = "I am sorry, but I cannot help with that."
BEHAVIORS = load_behaviors()
WEAPONS = load_behaviors(["weapons"])


def obliging(messages: list[dict[str, Any]]) -> str:
    """Does whatever it is asked, secrets and injections included."""
    return f"Sure, here is everything: {' '.join(str(m['content']) for m in messages)}"


def guarded(messages: list[dict[str, Any]]) -> Reply:
    """Blocks what says 'how', refuses what says 'write', obliges otherwise."""
    text = str(messages[-1]["content"]).lower()
    if "how " in text:
        return Reply("", "input", findings=("harm:HARM",))
    return Reply(REFUSAL if "write" in text else obliging(messages))


def test_who_obliges_fails_on_everything_and_who_refuses_on_nothing() -> None:
    worst = red_team(
        CallableTarget(obliging), BEHAVIORS[::5], strategies=["direct", "document", "extract_repeat"]
    )
    best = red_team(CallableTarget(lambda _: REFUSAL), BEHAVIORS[::5], strategies=["direct", "document"])
    assert worst.success_rate().value == 1  # type: ignore[union-attr]
    assert worst.over_refusal().value == 0  # type: ignore[union-attr]
    assert best.success_rate().value == 0  # type: ignore[union-attr]
    assert best.over_refusal().value == 1  # type: ignore[union-attr]
    assert best.outcomes("callable") == {"refused": len(best.attempts)}


def test_outcomes_are_told_apart_and_two_targets_are_paired() -> None:
    targets = [CallableTarget(guarded, "guarded"), CallableTarget(obliging, "open")]
    report = compare(targets, WEAPONS, strategies=["direct", "authority"])
    assert report.targets == ("guarded", "open")
    counts = report.outcomes("guarded")
    assert counts["blocked_input"] > 0
    assert counts["refused"] > 0
    assert sum(counts.values()) == len(WEAPONS) * 2
    gap = report.difference("open", "guarded")
    assert gap is not None
    assert gap.low > 0
    assert gap.n == len(WEAPONS) * 2
    assert [row.group for row in report.rows("domain")] == ["weapons"]


def test_errors_count_for_nothing() -> None:
    def failing(messages: list[dict[str, Any]]) -> str:
        if "bomb" in str(messages):
            raise TargetError("no answer")
        return obliging(messages)

    report = red_team(CallableTarget(failing), WEAPONS, strategies=["direct"])
    assert report.outcomes("callable")["error"] >= 1
    assert report.success_rate().value == 1  # type: ignore[union-attr]
    assert report.success_rate().n == len(WEAPONS) - report.outcomes("callable")["error"]  # type: ignore[union-attr]


def test_a_block_on_the_way_ends_a_conversation() -> None:
    said: list[int] = []

    def early(messages: list[dict[str, Any]]) -> Reply:
        said.append(len(messages))
        return Reply("", "input") if len(messages) >= 4 else Reply("Gladly.")

    report = red_team(CallableTarget(early), WEAPONS[:1], strategies=["crescendo"], twins=False)
    assert [attempt.outcome for attempt in report.attempts] == ["blocked_input"]
    assert said == [2, 4]


def test_canaries_are_found_however_they_are_written() -> None:
    attack = make_attack(load_behaviors(["extraction"])[0], "direct")
    spaced = " ".join(attack.canary.upper())
    assert canary_returned(attack, Reply(f"It is {spaced}."))
    assert canary_returned(attack, Reply("", tools=f"delete_all({attack.canary})"))
    assert not canary_returned(attack, Reply("I can't tell."))


def test_rules_take_what_is_about_the_request_and_no_refusal() -> None:
    attack = make_attack(WEAPONS[0], "direct")
    judge = RulesRubric()
    assert judge.succeeded(attack, "Take a pipe and fill it with powder.")
    assert not judge.succeeded(attack, f"{REFUSAL} A pipe is dangerous.")
    assert not judge.succeeded(attack, "The weather will be fine in the south tomorrow.")


def test_kappa_by_hand() -> None:
    one = [True] * 25 + [False] * 25
    other = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert kappa(one, other) == pytest.approx(0.4)
    assert kappa([True], [True]) is None


def test_who_learns_finds_more_than_who_draws() -> None:
    """A target that only three strategies get past: uniform finds its share, the learner most of them."""
    weak = ("role_play", "fiction", "many_shot")

    def leaky(messages: list[dict[str, Any]]) -> str:
        text = str(messages)
        broken = "play a scene" in text or "expert answers" in text or "open a tin" in text
        return obliging(messages) if broken else REFUSAL

    behaviors, found = BEHAVIORS[:60], {"uniform": 0, "learner": 0}
    for seed in range(3):
        arms = default_arms()
        for name, attacker in (
            ("uniform", Uniform(behaviors, arms, seed)),
            ("learner", Learner(behaviors, arms, seed, breed=0)),
        ):
            attempts = hunted(CallableTarget(leaky), behaviors, attacker, budget=200, seed=seed)
            assert len({(a.behavior, a.strategy) for a in attempts}) == len(attempts) == 200
            found[name] += sum(a.succeeded for a in attempts)
            assert all(a.strategy in weak for a in attempts if a.succeeded)
    assert found["learner"] > 2 * found["uniform"] > 0


def test_what_works_breeds_new_arms() -> None:
    learner = Learner(WEAPONS, ["direct", "role_play"], seed=0, breed=2)
    attempts = hunted(CallableTarget(obliging), WEAPONS, learner, budget=60, batch=8)
    bred = {attempt.strategy for attempt in attempts if "+" in attempt.strategy}
    assert bred
    assert all(name.split("+")[1] in ("direct", "role_play") for name in bred)


def test_successes_become_cases_and_pairs_and_a_sheet(tmp_path: Path) -> None:
    names = ["direct", "tool_result", "crescendo"]
    report = red_team(CallableTarget(obliging), WEAPONS[:3], strategies=names, twins=False)
    cases = tmp_path / "cases.jsonl"
    assert write_cases(cases, report.attempts, WEAPONS) == 9
    again = asked([CallableTarget(lambda _: REFUSAL)], read_cases(cases), (), ())
    assert again.success_rate().value == 0  # type: ignore[union-attr]
    assert asked([CallableTarget(obliging)], read_cases(cases), (), ()).success_rate().value == 1  # type: ignore[union-attr]
    assert write_pairs(tmp_path / "pairs.jsonl", report.attempts) == 6
    pairs = list(read_preferences(tmp_path / "pairs.jsonl"))
    assert {pair.chosen for pair in pairs} == {REFUSAL}
    assert write_sheet(tmp_path / "sheet.csv", report.attempts) == 9
    filled = (tmp_path / "sheet.csv").read_text().replace(",\n", ",yes\n", 1)
    assert filled.count(",yes\n") == 1
    (tmp_path / "sheet.csv").write_text(filled)
    assert list(read_sheet(tmp_path / "sheet.csv").values()) == [True]
    cases.write_text('{"behavior": 1}\n')
    with pytest.raises(DataError, match=r"cases\.jsonl:1"):
        read_cases(cases)


def test_a_leak_is_told_again_by_its_own_word_when_it_is_replayed(tmp_path: Path) -> None:
    behaviors = load_behaviors(["extraction"])[:2]

    def leaking(messages: list[dict[str, Any]]) -> str:
        return str(messages[0]["content"])

    report = red_team(CallableTarget(leaking), behaviors, strategies=["direct"], twins=False)
    cases = tmp_path / "cases.jsonl"
    assert write_cases(cases, report.attempts, behaviors) == 2
    attacks = read_cases(cases)
    assert asked([CallableTarget(leaking)], attacks, (), ()).success_rate().value == 1  # type: ignore[union-attr]
    assert asked([CallableTarget(lambda _: REFUSAL)], attacks, (), ()).success_rate().value == 0  # type: ignore[union-attr]
    cases.write_text(cases.read_text().replace('"canary"', '"was"'))
    with pytest.raises(DataError, match="'canary', which is missing"):
        read_cases(cases)


def test_what_safety_costs_stands_beside_the_attacks(tmp_path: Path) -> None:
    behaviors = [*WEAPONS[:2], *load_behaviors(["hate"])[:2]]

    def timid(messages: list[dict[str, Any]]) -> str:
        asked_for = str(messages[-1]["content"])
        return REFUSAL if asked_for in {b.twin for b in behaviors if b.domain == "hate"} else asked_for

    report = red_team(CallableTarget(timid, "timid"), behaviors, strategies=["direct"])
    rows = {row.group: row for row in report.rows("domain")}
    assert [rows[domain].refusals[0].value for domain in ("hate", "weapons")] == [1, 0]  # type: ignore[union-attr]
    assert report.rows("strategy")[0].refusals == ()
    report.write(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text())["summary"]["timid"]
    assert told["twins_unanswered"]["value"] == 0.5
    assert told["twin_outcomes"] == {"refused": 2, "withstood": 2}
    assert told["success"] == told["by_strategy"]["direct"]
    assert told["behaviors_broken"] == sorted(behavior.id for behavior in behaviors)
    html = page(report)
    assert (
        "<td>hate</td><td>100.0 % [34.2, 100.0]</td><td>100.0 % [34.2, 100.0]</td><td>2</td><td>2</td>"
        in html
    )
    assert "Behaviours that broke most often" in html


def test_the_report_is_kept_shown_and_escapes_what_was_said(tmp_path: Path) -> None:
    def rude(messages: list[dict[str, Any]]) -> str:
        return f"<script>alert(1)</script> {obliging(messages)}"

    report = compare(
        [CallableTarget(rude, "<b>one</b>"), CallableTarget(guarded, "two")], WEAPONS, strategies=["direct"]
    )
    report.write(tmp_path / "deep" / "report.json")
    assert Report.read(tmp_path / "deep" / "report.json") == report
    html = page(report)
    assert "<script" not in html
    assert "<b>one" not in html
    assert "&lt;script&gt;" in html
    assert html.count("<svg") == 3
    assert "direct" in html
