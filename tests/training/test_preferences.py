"""Comparisons, rankings, ratings and prompts: what is read, what is refused, what is written back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from training.data.conversation import Message
from training.data.preferences import (
    ComparisonFormat,
    Preference,
    Prompt,
    Ranking,
    Rating,
    as_prompt,
    read_preferences,
    read_prompts,
    read_ratings,
    write_preferences,
    write_prompts,
    write_rankings,
    write_ratings,
)
from training.errors import DataError

ASKED = as_prompt("What is 2 + 2?")
DIALOGUE = (
    Message("system", "Be brief."),
    Message("user", "Hello"),
    Message("assistant", "Hi."),
    Message("user", "How are you?"),
)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_row_says_how_strong_by_whom_and_how_sure(tmp_path: Path) -> None:
    row = {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": " 5 ", "preference_strength": 2}
    about = {"soft": 0.75, "objective": "honest", "rater": "r1", "id": 17}
    found = list(read_preferences(write(tmp_path / "rows.jsonl", row, row | about)))
    assert found == [
        Preference(ASKED, "4", "5", strength=2.0),
        Preference(ASKED, "4", "5", 2.0, "honest", "r1", "17", 0.75),
    ]


def test_a_prompt_may_be_a_dialogue_or_an_instruction_with_its_input(tmp_path: Path) -> None:
    messages = [{"role": m.role, "content": m.content} for m in DIALOGUE]
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": messages},
        {"instruction": "Add.", "input": "1 2"},
        {"prompt": "x"},
    )
    assert list(read_prompts(path)) == [DIALOGUE, as_prompt("Add.\n1 2"), as_prompt("x")]


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": "What is 2 + 2?", "good": "4", "bad": "5"})
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert list(read_preferences(path, columns=columns)) == [Preference(ASKED, "4", "5")]


def test_dialogues_in_the_hh_form_share_all_but_their_last_turn(tmp_path: Path) -> None:
    shared = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: What is\n\n2 + 2?\n\nAssistant:"
    path = write(tmp_path / "rows.jsonl", {"chosen": shared + " 4", "rejected": shared + " 5"})
    prompt = (Message("user", "Hello"), Message("assistant", "Hi."), Message("user", "What is\n\n2 + 2?"))
    assert list(read_preferences(path, "hh")) == [Preference(prompt, "4", "5")]


def test_a_ranking_of_four_with_a_tie_comes_to_five_pairs_each_best_first() -> None:
    ranking = Ranking(ASKED, ("bad", "best", "good", "fine"), (2, 0, 1, 1), rater="r1")
    pairs = [(pair.chosen, pair.rejected) for pair in ranking.pairs()]
    assert sorted(pairs) == sorted(
        [("best", "good"), ("best", "fine"), ("best", "bad"), ("good", "bad"), ("fine", "bad")]
    )
    assert {pair.rater for pair in ranking.pairs()} == {"r1"}


def test_replies_without_ranks_stand_best_first(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "What is 2 + 2?", "replies": ["4", "four?", "5"]})
    assert list(read_preferences(path, "rankings")) == [Ranking(ASKED, ("4", "four?", "5"), (0, 1, 2))]


PAIR: dict[str, Any] = {"prompt": "p", "chosen": "a", "rejected": "b"}
HH = "\n\nHuman: Hello\n\nAssistant: "


@pytest.mark.parametrize(
    ("file_format", "row", "problem"),
    [
        ("preferences", {"prompt": "p", "chosen": "a"}, "missing column 'rejected'"),
        ("preferences", PAIR | {"rejected": "a"}, "the same reply"),
        ("preferences", PAIR | {"chosen": "  "}, "chosen: an empty reply"),
        ("preferences", PAIR | {"prompt": ""}, "an empty message"),
        ("preferences", PAIR | {"prompt": 3}, "must be a text or messages"),
        ("preferences", PAIR | {"prompt": [{"role": "assistant", "content": "x"}]}, "ends with a user"),
        ("preferences", PAIR | {"prompt": [{"role": "tool", "content": "x"}]}, "unknown role 'tool'"),
        ("preferences", PAIR | {"prompt": [{"role": "user", "content": None}]}, "content must be a string"),
        ("preferences", PAIR | {"prompt": ["x"]}, "a message has a role"),
        ("preferences", PAIR | {"preference_strength": -1}, "finite number ≥ 0"),
        ("preferences", PAIR | {"preference_strength": "much"}, "must be a number"),
        ("preferences", PAIR | {"soft": 0.3}, "exchange the two replies"),
        ("preferences", PAIR | {"rater": ["a"]}, "'rater' must be a string"),
        ("rankings", {"prompt": "p", "replies": "a"}, "must be a list"),
        ("rankings", {"prompt": "p", "replies": ["a"]}, "two different ranks"),
        ("rankings", {"prompt": "p", "replies": ["a", "b"], "ranks": [0]}, "2 replies but 1 ranks"),
        ("rankings", {"prompt": "p", "replies": ["a", "b"], "ranks": [0, True]}, "whole numbers"),
        ("rankings", {"prompt": "p", "replies": ["a", "a"]}, "two different ranks"),
        ("hh", {"chosen": HH + "a", "rejected": HH.replace("Hello", "Hi") + "b"}, "not the same dialogue"),
        ("hh", {"chosen": HH + "a\n\nHuman: x", "rejected": HH + "b\n\nHuman: y"}, "end with the assistant"),
        ("hh", {"chosen": "Hello", "rejected": "Hello"}, "must begin with 'Human:'"),
    ],
)
def test_a_bad_row_is_told_with_file_and_line(
    tmp_path: Path, file_format: ComparisonFormat, row: object, problem: str
) -> None:
    good = {"prompt": "p", "replies": ["a", "b"], "chosen": HH + "a", "rejected": HH + "b"}
    path = write(tmp_path / "rows.jsonl", good, row)
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{problem}"):
        list(read_preferences(path, file_format))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "p", "reply": "a"}, "a label or a score"),
        ({"prompt": "p", "reply": "a", "label": 1}, "must be true or false"),
        ('{"prompt": "p", "reply": "a", "score": NaN}', "finite"),
        ("not json", "not valid JSON"),
    ],
)
def test_a_bad_rating_is_told_with_file_and_line(tmp_path: Path, row: object, problem: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{problem}"):
        list(read_ratings(write(tmp_path / "rows.jsonl", row)))


def test_bad_rows_can_be_collected_instead(tmp_path: Path) -> None:
    skipped: list[DataError] = []
    path = write(tmp_path / "rows.jsonl", PAIR, PAIR | {"chosen": "b"}, PAIR)
    assert len(list(read_preferences(path, skipped=skipped))) == 2
    assert [error.line for error in skipped] == [2]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_what_is_written_reads_back_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pairs = [Preference(DIALOGUE, "ä", "b", 1.5, "harmless", "r", "7", 0.9), Preference(ASKED, "4", "5")]
    assert write_preferences(path, pairs) == 2
    assert list(read_preferences(path)) == pairs
    rankings = [Ranking(ASKED, ("4", "5", "6"), (0, 1, 1))]
    write_rankings(path, rankings)
    assert list(read_preferences(path, "rankings")) == rankings
    ratings = [Rating(ASKED, "4", True), Rating(ASKED, "5", False, 0.0, rater="r")]
    write_ratings(path, ratings)
    assert list(read_ratings(path)) == ratings
    prompts: list[Prompt] = [ASKED, DIALOGUE]
    write_prompts(path, prompts)
    assert list(read_prompts(path)) == prompts
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_the_same_rows_come_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_preferences(tmp_path / name, [Preference(ASKED, "4", "5")])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == (
        b'{"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"}\n'
    )
