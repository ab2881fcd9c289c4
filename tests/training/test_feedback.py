"""What users said becomes datasets; what they can't have said is told with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.cli import main
from training.data.feedback import feedback_rows, read_feedback, write_datasets
from training.data.formats import read_conversations
from training.data.preferences import Preference, Rating, as_prompt, read_preferences, read_ratings
from training.errors import DataError

ABOUT = {"checkpoint": "demo-chat@abc", "policy": "standard", "created": "2026-11-20T10:00:00Z"}
PREFERENCE = {"kind": "preference", "prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
CORRECTION = {"kind": "correction", "reply": "Five.", "correction": "Four.", "checkpoint": "demo-chat@abc"}
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
ROWS: list[dict[str, Any]] = [
    {**PREFERENCE, **ABOUT, "preference_strength": 2, "rater": "anna", "id": "1"},
    {"kind": "rating", "prompt": "Hi", "reply": "Hello.", "thumb": "up", "rater": "anna"},
    {"kind": "rating", "prompt": "Hi", "reply": "Hello.", "thumb": "up", "rater": "bert"},
    {"kind": "rating", "prompt": "Hi", "reply": "What?", "thumb": "down", "rater": "anna"},
    {"kind": "rating", "prompt": "Hi", "reply": "What?", "thumb": "down", "score": 1, "rater": "bert"},
    {"kind": "rating", "prompt": "Hi", "reply": "Oh.", "score": 3.5, "objective": "engaging"},
    {**CORRECTION, "prompt": ASKED},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_kind_becomes_what_it_is_worth(tmp_path: Path) -> None:
    feedback = read_feedback(write(tmp_path / "f.jsonl", ROWS))
    assert dict(feedback.kinds) == {"preference": 1, "rating": 5, "correction": 1}
    assert feedback.checkpoints == {"demo-chat@abc": 2}
    plain, corrected = feedback.preferences
    assert (plain.chosen, plain.strength, plain.rater) == ("Hello.", 2.0, "anna")
    assert (corrected.chosen, corrected.rejected) == ("Four.", "Five.")
    assert [r.label for r in feedback.ratings] == [True, True, False, False, None, False]
    (talk,) = feedback.demonstrations
    assert [m.role for m in talk.messages] == ["system", "user", "assistant"]
    assert talk.messages[-1].content == "Four."
    assert feedback.rating_agreement() == (pytest.approx(1.0), 2)


def test_datasets_are_read_by_the_methods_own_readers(tmp_path: Path) -> None:
    feedback = read_feedback(write(tmp_path / "f.jsonl", ROWS))
    written = write_datasets(feedback, tmp_path / "data")
    assert written == {"preferences.jsonl": 2, "ratings.jsonl": 6, "demonstrations.jsonl": 1}
    assert tuple(read_preferences(tmp_path / "data/preferences.jsonl")) == feedback.preferences
    assert tuple(read_ratings(tmp_path / "data/ratings.jsonl")) == feedback.ratings
    talk = tuple(read_conversations(tmp_path / "data/demonstrations.jsonl", "messages"))
    assert talk == feedback.demonstrations


def test_rows_are_written_as_they_are_read(tmp_path: Path) -> None:
    pairs = [Preference(as_prompt("Hi"), "Hello.", "What?", rater="anna", id="7")]
    ratings = [Rating(as_prompt("Hi"), "Hello.", label=True, score=4.0, rater="bert")]
    feedback = read_feedback(write(tmp_path / "f.jsonl", list(feedback_rows(pairs, ratings))))
    assert feedback.preferences == tuple(pairs)
    assert feedback.ratings == tuple(ratings)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"kind": "like", "prompt": "Hi"}, "'kind' must be one of preference, rating, correction"),
        ({"prompt": "Hi"}, "'kind' must be one of"),
        (
            {"kind": "rating", "prompt": "Hi", "reply": "Oh.", "thumb": "sideways"},
            "'thumb' must be 'up' or 'down'",
        ),
        ({"kind": "rating", "prompt": "Hi", "reply": "Oh."}, "a rating needs a label or a score"),
        (
            {"kind": "rating", "prompt": "Hi", "reply": "Oh.", "thumb": "up", "stars": 3},
            "has no column 'stars'",
        ),
        ({"kind": "correction", "prompt": "Hi", "reply": "Oh."}, "missing column 'correction'"),
        ({"kind": "correction", "prompt": "Hi", "reply": "Oh.", "correction": "Oh. "}, "the same reply"),
        ({"kind": "preference", "prompt": "", "chosen": "a", "rejected": "b"}, "an empty message"),
        ({"kind": "preference", "prompt": 3, "chosen": "a", "rejected": "b"}, "must be a text or messages"),
        (
            {"kind": "preference", "prompt": "Hi", "chosen": "a", "rejected": None},
            "'rejected' must be a string",
        ),
    ],
)
def test_wrong_rows_are_told_with_file_and_line(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    file = write(tmp_path / "f.jsonl", [ROWS[0], row])
    with pytest.raises(DataError, match=rf"f\.jsonl:2: .*{told}"):
        read_feedback(file)
    skipped: list[DataError] = []
    assert read_feedback(file, skipped).kinds == {"preference": 1}
    assert len(skipped) == 1


def test_the_command_reports_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "f.jsonl", ROWS)
    assert main(["feedback", str(file), "--folder", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    assert "1 corrections, 1 preferences, 5 ratings" in said
    assert "alpha 1.00 on 2 replies" in said
    assert "preferences.jsonl: 2 rows" in said
