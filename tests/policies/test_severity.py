"""Ladders of severity in policy files: what they mean, and what is said of those that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.errors import PolicyError
from policies.load import load_policy
from policies.severity import Level
from policies.spec import InjectionSpec, ToxicitySpec

RERANK = "rerank: {model: {upstream: {base_url: 'http://127.0.0.1:8/v1', model: r}, objectives: [good]}}\n"
HEAD = "name: p\nmodel: {upstream: {base_url: 'http://127.0.0.1:9/v1', model: m}}\noutput:\n"


def told(tmp_path: Path, guard: str) -> list[str]:
    path = tmp_path / "p.yaml"
    path.write_text(HEAD + guard)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    return [str(fault).removeprefix(f"{path}:") for fault in caught.value.faults]


def test_a_threshold_is_a_ladder_of_one_step() -> None:
    assert ToxicitySpec(threshold=0.5, action="redact").ladder == (Level(at=0.5, action="redact"),)
    assert InjectionSpec().ladder == (Level(at=0.9, action="block"),)
    spec = ToxicitySpec(threshold=0.6, thresholds={"threat": 0.2}, action="escalate")
    assert dict(spec.ladders) == {"threat": (Level(at=0.2, action="escalate"),)}


def test_single_categories_may_have_ladders_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        HEAD
        + """\
  - guard: toxicity
    levels: [{at: 0.4, action: log}, {at: 0.6, action: rewrite, replacement: "…"}, {at: 0.9, action: block}]
    categories:
      threat: [{at: 0.2, action: escalate, penalty: 2}]
"""
    )
    with path.open("a") as file:
        file.write(RERANK)
    (guard,) = load_policy(path).spec.output
    assert isinstance(guard, ToxicitySpec)
    assert [level.action for level in guard.ladder] == ["log", "rewrite", "block"]
    assert guard.ladders["threat"][0].penalty == 2


def test_ladders_that_make_no_sense_are_told_with_their_place(tmp_path: Path) -> None:
    guard = """\
  - guard: toxicity
    threshold: 0.5
    levels:
      - {at: 0.6, action: block}
      - {at: 0.4, action: escalate}
    categories:
      insult: [{at: 0.1, action: log, replacement: x}]
      threat: []
"""
    assert told(tmp_path, guard) == [
        "5:16: output[0].threshold: 'levels' says it already: give 'threshold' or 'levels', not both",
        "8:14: output[0].levels[1].at: levels rise: this one begins at 0.4, the one before it at 0.6",
        "8:27: output[0].levels[1].action: "
        "a higher score can't be met by less: 'escalate' comes after 'block'",
        "10:52: output[0].categories.insult[0].replacement: 'log' replaces nothing: leave it out",
        "11:15: output[0].categories.threat: give at least one level, or leave the category out",
    ]
    (unsaid,) = told(tmp_path, "  - {guard: injection, levels: [{at: 0.5, action: rewrite}]}\n")
    assert "'rewrite' needs 'replacement'" in unsaid
    labels = "thresholds: {threat: 0.3}, categories: {threat: [{at: 0.5, action: block}]}"
    (twice,) = told(tmp_path, f"  - {{guard: toxicity, {labels}}}\n")
    assert "'categories' says it already" in twice


def test_penalties_that_would_do_nothing_are_told(tmp_path: Path) -> None:
    guard = """\
  - guard: toxicity
    levels: [{at: 0.4, action: log, penalty: 0.5}]
    categories:
      threat: [{at: 0.2, action: escalate, penalty: 2}]
"""
    said = told(tmp_path, guard)
    assert [line.split(": ", 2)[1] for line in said] == [
        "output[0].levels[0].penalty",
        "output[0].categories.threat[0].penalty",
    ]
    assert "it needs 'rerank', under 'output'" in said[0]


@pytest.mark.parametrize(
    ("rules", "contradicts"),
    [
        ("{ban: [Zephyr]}, {require: [project zephyr]}", True),
        ("{require: [project zephyr]}, {ban: [proj], whole_words: false}", True),
        ("{ban: [Zephyr], case_sensitive: true}, {require: [project zephyr]}", False),
        ("{ban: [proj]}, {require: [project zephyr]}", False),
        ("{ban: [project zephyr]}, {require: [zephyr]}", False),
    ],
)
def test_what_must_be_said_can_be_said(tmp_path: Path, rules: str, contradicts: bool) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(HEAD.replace("output:\n", f"constraints: [{rules}]\n"))
    if not contradicts:
        load_policy(path)
        return
    with pytest.raises(PolicyError, match=r"p\.yaml:3:\d+: .*project zephyr.* must be said and can't be"):
        load_policy(path)
