"""`keel-train evaluate …` from end to end on tiny models: what is written is what is read next."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from policies.registry import Registry
from tests.training.tiny import write_tiny
from tests.training.tiny_reward import KIND, RUDE, reward_model
from training.cli import main
from training.data.preferences import (
    Preference,
    as_prompt,
    read_preferences,
    write_preferences,
    write_prompts,
    write_rows,
)
from training.evaluate.replies import read_replies, write_replies
from training.evaluate.report import EvaluationFile
from training.provenance import RunRecord, folder_digest
from training.publish import Draft, publish

RULES = "rules:\n  - {principle: no-abuse, broken_by: idiot}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published parent, a finished run that started from it, prompts and rules."""
    folder = tmp_path_factory.mktemp("evaluate")
    draft = Draft(name="parent-1", kind="full", method="sft", config={}, seed=0, code_revision="abc")
    parent = publish(write_tiny(folder / "tiny"), folder / "checkpoints", draft)
    write_tiny(folder / "run" / "final", seed=1)
    RunRecord(method="dpo", config={}, seed=0, code_revision="abc", data=(), parent=parent.ref).write(
        folder / "run"
    )
    write_prompts(folder / "prompts.jsonl", [as_prompt(f"Say {i}.") for i in range(12)])
    (folder / "rules.yaml").write_text(RULES)
    return folder


def keel_train(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def test_a_policy_is_measured_beside_its_parent_and_published_by_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final, parent, out = (
        place / "run" / "final",
        place / "checkpoints" / "parent-1",
        place / "run" / "evaluation.json",
    )
    command = ["policy", "--checkpoint", final, "--parent", parent, "--prompts", place / "prompts.jsonl"]
    assert keel_train(*command, "--max-new-tokens", 8, "--out", out, "--replies", place / "ours.jsonl") == 0
    assert "difference" in capsys.readouterr().out
    file = EvaluationFile.read(out)
    assert file.subject == "run"
    assert file.weights == folder_digest(final)
    assert file.baseline is not None
    assert file.baseline.subject == Registry(place / "checkpoints").resolve("parent-1").ref
    kl, own = file.metric("kl"), file.baseline.metric("kl")
    assert kl is not None
    assert own is not None
    assert own.value == pytest.approx(0, abs=1e-3)
    assert len(read_replies(place / "ours.jsonl")) == 12
    publishing = [
        "publish",
        "--run",
        str(place / "run"),
        "--registry",
        str(place / "checkpoints"),
        "--name",
        "child-1",
    ]
    assert main([*publishing, "--gate", "words>=parent+100"]) == 1
    assert "paired over rows" in capsys.readouterr().err
    assert main([*publishing, "--gate", "words<=parent+100", "--alias", "live"]) == 0


def test_perplexity_of_two_models(place: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": "No."}]}
        for i in range(6)
    ]
    write_rows(place / "talk.jsonl", rows)
    out = place / "perplexity.json"
    command = ["perplexity", "--checkpoint", place / "run" / "final", "--parent", place / "tiny"]
    assert keel_train(*command, "--data", place / "talk.jsonl", "--out", out) == 0
    file = EvaluationFile.read(out)
    assert {m.name for m in file.metrics} == {"perplexity", "nats_per_token", "bits_per_byte"}
    changes = {metric.name: metric for metric in file.differences()}
    assert changes["nats_per_token"].about == "difference, paired over rows"
    assert keel_train(*command) == 1


def test_two_files_of_replies_are_compared_by_rules_and_by_people(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [as_prompt(f"Say {i}.") for i in range(10)]
    a, b = place / "a.jsonl", place / "b.jsonl"
    write_replies(a, prompts, [f"Fine {i}." for i in range(10)])
    write_replies(b, [*prompts[:8], as_prompt("Other.")], ["You idiot."] * 9)
    out = place / "pairwise.json"
    assert (
        keel_train("pairwise", "--a", a, "--b", b, "--judge-rules", place / "rules.yaml", "--out", out) == 0
    )
    assert "win rate 100.0 %" in capsys.readouterr().out
    file = EvaluationFile.read(out)
    rate, bias = file.metric("win_rate"), file.metric("position_bias")
    assert rate is not None and bias is not None
    assert (rate.value, rate.n) == (1.0, 8)
    assert bias.value == pytest.approx(0)
    assert keel_train("pairwise", "--a", a, "--b", b) == 1
    assert "--judge-rules FILE" in capsys.readouterr().err

    assert keel_train("human", "sheet", "--a", a, "--b", b, "--folder", place / "sheets", "--rows", 6) == 0
    with (place / "sheets" / "sheet.csv").open(newline="") as source:
        header, *rows = list(csv.reader(source))
    with (place / "anna.csv").open("w", newline="") as target:
        csv.writer(target).writerows(
            [header, *([*row[:4], "left" if "Fine" in row[2] else "right"] for row in rows)]
        )
    answers = f"anna={place / 'anna.csv'}"
    made = place / "preferences.jsonl"
    command = ["human", "report", "--key", place / "sheets" / "key.json", "--preferences", made, answers]
    assert keel_train(*command) == 0
    assert "a against b: win rate 100.0 %" in capsys.readouterr().out
    assert len(list(read_preferences(made))) == 6
    assert keel_train("human") == 2


def test_texts_and_replies_are_held_against_a_constitution(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["constitution", "--constitution", "harmless", "--judge-rules", place / "rules.yaml"]
    assert keel_train(*common, "--text", "Ring, idiot.") == 0
    assert "no-abuse: idiot" in capsys.readouterr().out
    write_replies(place / "said.jsonl", [as_prompt("Hi."), as_prompt("Ho.")], ["Ring, idiot.", "Ring."])
    assert keel_train(*common, "--replies", place / "said.jsonl", "--out", place / "c.json") == 0
    found = EvaluationFile.read(place / "c.json").metric("no-abuse")
    assert found is not None
    assert found.rows == (1, 0)
    assert keel_train(*common[:2], "kind", *common[3:], "--text", "x") == 1
    assert "no constitution 'kind'" in capsys.readouterr().err


def test_a_wrong_call_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert keel_train("everything") == 2
    said = capsys.readouterr().err
    for name in ("safety", "policy", "pairwise", "reward", "human", "perplexity", "constitution"):
        assert name in said


def test_a_reward_model_is_measured_on_pairs(place: Path) -> None:
    reward_model().save(place / "reward")
    pairs = [Preference(as_prompt(f"Say {i}."), f"{KIND} {i}", RUDE) for i in range(9)]
    write_preferences(place / "pairs.jsonl", pairs)
    out = place / "reward.json"
    assert (
        keel_train("reward", "--checkpoint", place / "reward", "--data", place / "pairs.jsonl", "--out", out)
        == 0
    )
    file = EvaluationFile.read(out)
    accuracy, margin, error = (file.metric(name) for name in ("accuracy", "margin", "ece"))
    assert accuracy is not None and margin is not None and error is not None
    assert accuracy.value == sum(row > 0 for row in margin.rows) / 9
    assert accuracy.low <= accuracy.value <= accuracy.high
    assert 0 <= error.value <= 1
