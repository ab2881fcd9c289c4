"""Loading comparisons, ratings and prompts: nothing leaks between the two sides of the split."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from training.data.conversation import Message
from training.data.preference_data import (
    PreferenceDataConfig,
    PreferenceSource,
    PromptDataConfig,
    PromptSource,
    RatingDataConfig,
    RatingSource,
    as_ratings,
    is_held_out,
    load_comparisons,
    load_preferences,
    load_prompts,
    load_ratings,
)
from training.data.preferences import (
    Preference,
    Ranking,
    Rating,
    as_prompt,
    write_preferences,
    write_prompts,
    write_rankings,
    write_ratings,
)
from training.errors import ConfigError, TrainingError

QUESTIONS = tuple(as_prompt(f"What is {n} + 1?") for n in range(200))
PAIRS = [Preference(q, f"{n} it is", f"or {m}") for q in QUESTIONS for n, m in ((1, 2), (3, 4))]


def source(path: str = "pairs.jsonl", **options: object) -> PreferenceSource:
    return PreferenceSource.model_validate({"path": path, "origin": "here", "licence": "MIT", **options})


def test_all_pairs_of_a_prompt_land_on_the_same_side(tmp_path: Path) -> None:
    write_preferences(tmp_path / "pairs.jsonl", PAIRS)
    data = load_preferences(PreferenceDataConfig(files=(source(),), held_out=0.2), tmp_path, seed=0)
    assert sorted(data.train + data.held_out, key=str) == sorted(PAIRS, key=str)
    assert not {p.prompt for p in data.train} & {p.prompt for p in data.held_out}
    assert 0.1 < len(data.held_out) / len(PAIRS) < 0.3
    assert [entry.path for entry in data.data] == ["pairs.jsonl"]
    assert data.report[0] == "pairs.jsonl: 400 rows, 0 unreadable"


def test_a_dialogue_stays_on_its_beginnings_side_and_spelling_does_not_matter() -> None:
    for (first,) in QUESTIONS:
        later = (Message("system", "Be brief."), first, Message("assistant", "?"), Message("user", "More."))
        shouted = as_prompt(f"  {first.content.upper()} ")
        assert is_held_out(later, 0.5) == is_held_out((first,), 0.5) == is_held_out(shouted, 0.5)


def test_rankings_stay_whole_or_come_as_pairs(tmp_path: Path) -> None:
    write_rankings(tmp_path / "r.jsonl", [Ranking(QUESTIONS[0], ("a", "b", "c"), (0, 1, 2))])
    config = PreferenceDataConfig(files=(source("r.jsonl", format="rankings"),), held_out=0)
    assert [type(row) for row in load_comparisons(config, tmp_path, 0).train] == [Ranking]
    assert len(load_preferences(config, tmp_path, 0).train) == 3


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    write_preferences(tmp_path / "pairs.jsonl", PAIRS)
    data = load_preferences(PreferenceDataConfig(files=(source(limit=7),), held_out=0), tmp_path, 0)
    assert list(data.train) == PAIRS[:7]


def test_comparisons_can_be_read_as_ratings(tmp_path: Path) -> None:
    asked = QUESTIONS[0]
    write_preferences(tmp_path / "pairs.jsonl", [Preference(asked, "a", "b"), Preference(asked, "a", "c")])
    write_ratings(tmp_path / "ratings.jsonl", [Rating(asked, "d", False)])
    files = tuple(
        RatingSource.model_validate({"path": path, "format": kind, "origin": "here", "licence": "MIT"})
        for path, kind in (("pairs.jsonl", "preferences"), ("ratings.jsonl", "ratings"))
    )
    data = load_ratings(RatingDataConfig(files=files, held_out=0), tmp_path, 0)
    assert [(r.reply, r.label) for r in data.train] == [("a", True), ("b", False), ("c", False), ("d", False)]


def test_a_reply_that_won_here_and_lost_there_is_no_rating() -> None:
    asked = QUESTIONS[0]
    pairs = [Preference(asked, "a", "b"), Preference(asked, "b", "c"), Preference(asked, "b", "a")]
    assert [(r.reply, r.label) for r in as_ratings(pairs)] == [("c", False)]


def test_prompts_come_once_each(tmp_path: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", [*QUESTIONS, *QUESTIONS])
    prompts = PromptSource(path="p.jsonl", origin="here", licence="MIT")
    data = load_prompts(PromptDataConfig(files=(prompts,), held_out=0.2), tmp_path, 0)
    assert sorted(data.train + data.held_out, key=str) == sorted(QUESTIONS, key=str)


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no data"):
        PreferenceDataConfig()
    with pytest.raises(ConfigError, match="no such data file"):
        load_preferences(PreferenceDataConfig(files=(source("nowhere.jsonl"),)), tmp_path, 0)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(TrainingError, match="no row is left"):
        load_preferences(PreferenceDataConfig(files=(source("empty.jsonl"),)), tmp_path, 0)
