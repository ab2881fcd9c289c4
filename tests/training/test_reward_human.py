"""Cross-validation on human pairs: no prompt on both sides, baselines on the same folds, a written result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny_reward import encoder_backbone, kind_over_rude, reward_config
from training.data.preferences import Preference, as_prompt
from training.data.quality_command import main as quality_main
from training.evaluate.reward_human import HumanConfig, bag_of_words, by_length, folds_of, lead, main


def test_pairs_of_one_prompt_share_a_fold() -> None:
    rows = [Preference(as_prompt(f"Hello {i % 7}"), f"a{i}", f"b{i}") for i in range(70)]
    folds = folds_of(rows, 3)
    assert all(len(set(folds[k::7])) == 1 for k in range(7))
    assert len(set(folds)) > 1


def test_the_length_baseline_learns_the_sign_from_the_other_folds() -> None:
    rows = [Preference(as_prompt(f"Hello {i}"), "no", "yes indeed") for i in range(20)]
    folds = folds_of(rows, 4)
    assert (by_length(rows, folds) > 0).all()


def test_the_bag_of_words_finds_a_word_and_never_sees_the_fold_it_scores() -> None:
    rng = np.random.default_rng(0)
    words = "one two three four five six".split()
    noise = [" ".join(rng.choice(words, 4)) for _ in range(400)]
    rows = [
        Preference(as_prompt(f"Hello {i}"), f"sorry {noise[2 * i]}", f"sure {noise[2 * i + 1]}")
        for i in range(200)
    ]
    folds = folds_of(rows, 4)
    assert (bag_of_words(rows, folds[None]) > 0).mean() > 0.95
    chance = [Preference(p.prompt, noise[2 * i], noise[2 * i + 1] + " x") for i, p in enumerate(rows)]
    turned = [p if i % 2 else Preference(p.prompt, p.rejected, p.chosen) for i, p in enumerate(chance)]
    assert (bag_of_words(turned, folds[None]) > 0).mean() < 0.65


def test_a_lead_is_paired() -> None:
    rows = kind_over_rude(100)
    theirs = np.where(np.arange(100) < 60, 1.0, -1.0)
    ours = np.where(np.arange(100) < 75, 1.0, -1.0)
    ahead, p = lead(ours[None], theirs[None], rows)
    assert ahead.value == pytest.approx(0.15)
    assert ahead.low > 0
    assert p == pytest.approx(2 * 0.5**15)
    assert lead(ours[None], ours[None], rows)[1] == 1.0


def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    model, tokenizer = encoder_backbone()
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    rows = [
        {
            "chosen": f"\n\nHuman: Hello {i} friend\n\nAssistant: You are kind. Number {i}",
            "rejected": f"\n\nHuman: Hello {i} friend\n\nAssistant: You are stupid. Number {i}",
        }
        for i in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = reward_config(tmp_path / "encoder", fit="head", training={"max_length": 64})
    config = HumanConfig.model_validate(
        {
            "pairs": {"path": "pairs.jsonl", "format": "hh", "origin": "a test", "licence": "MIT"},
            "folds": 3,
            "repeats": 2,
            "hacked": 5,
            "reward": reward.model_dump(),
        }
    )
    (tmp_path / "human.yaml").write_text(config.to_yaml())
    command = ["--config", str(tmp_path / "human.yaml"), "--data", str(tmp_path)]
    status = main([*command, "--report", str(tmp_path / "result.md")])
    text = (tmp_path / "result.md").read_text()
    assert "| reward model | 100.0 %" in text
    assert "beats length" in text
    assert status == (1 if "**fail**" in text else 0)


def test_the_quality_command_ends_with_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"prompt": f"How do {w} work?", "chosen": f"{w} turn.", "rejected": f"{w} are hard, I will not say."}
        for w in ("clocks", "mills", "wheels", "looms")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (tmp_path / "q.yaml").write_text(
        "data: {files: [{path: pairs.jsonl, origin: a test, licence: MIT}], held_out: 0}\n"
    )
    command = ["--config", str(tmp_path / "q.yaml"), "--data", str(tmp_path)]
    assert quality_main(command) == 1  # the shorter reply always wins
    assert "| longer wins | FAIL |" in capsys.readouterr().out
    assert quality_main([*command, "--set", "limits.longer_wins=0.5"]) == 0
