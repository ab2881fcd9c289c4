"""Sheets for people: blind, balanced, and tied to their key; answers in, win rate and agreement out."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from training.data.preferences import as_prompt
from training.errors import DataError, TrainingError
from training.evaluate.human import Answer, Key, as_preferences, make_key, read_answers, report, write_sheet

PROMPTS = [as_prompt(f"Question {i}?") for i in range(40)]
OURS, THEIRS = [f"good reply {i}" for i in range(40)], [f"=bad {i}, <b>" for i in range(40)]


@pytest.fixture
def key() -> Key:
    return make_key(PROMPTS, OURS, THEIRS, ("ppo-secret", "sft-secret"), seed=3)


def fill(sheet: Path, to: Path, prefer: str) -> Path:
    """Answer every row for the side whose text contains `prefer`."""
    with sheet.open(newline="") as source, to.open("w", newline="") as target:
        rows = list(csv.reader(source))
        writer = csv.writer(target)
        writer.writerow(rows[0])
        for number, prompt, left, right, _ in rows[1:]:
            writer.writerow((number, prompt, left, right, "left" if prefer in left else "right"))
    return to


def test_sheets_are_blind_and_sides_are_balanced(key: Key, tmp_path: Path) -> None:
    sheet, page, _ = write_sheet(tmp_path, key)
    for place in (sheet, page):
        assert "secret" not in place.read_text()
    assert sum(row.a_is_left for row in key.rows) == 20
    assert [row.prompt for row in key.rows] != [f"Question {i}?" for i in range(40)]
    assert make_key(PROMPTS, OURS, THEIRS, ("a", "b"), 3).rows == key.rows
    assert make_key(PROMPTS, OURS, THEIRS, ("a", "b"), 4).rows != key.rows
    assert Key.read(tmp_path / "key.json") == key


def test_texts_cannot_run_in_a_spreadsheet_or_a_browser(key: Key, tmp_path: Path) -> None:
    sheet, page, _ = write_sheet(tmp_path, key)
    with sheet.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert any(cell.startswith("'=bad") for cell in cells)
    assert not any(cell.startswith("=") for cell in cells)
    assert "<b>" not in page.read_text()
    assert "&lt;b&gt;" in page.read_text()
    assert not re.search(r"https?://", page.read_text())


def test_answers_become_a_win_rate_with_agreement(key: Key, tmp_path: Path) -> None:
    sheet, _, _ = write_sheet(tmp_path, key)
    anna = read_answers(fill(sheet, tmp_path / "anna.csv", "good"), key)
    bert = read_answers(fill(sheet, tmp_path / "bert.csv", "good"), key)
    found = report(key, {"anna": anna, "bert": bert})
    assert found.win_rate.value == 1.0
    assert found.alpha == pytest.approx(1.0)
    assert found.left.value == pytest.approx(0.5)
    opposed: dict[int, Answer] = {n: "left" if a == "right" else "right" for n, a in anna.items()}
    against = report(key, {"anna": anna, "carl": opposed})
    assert against.win_rate.value == 0.5
    assert against.alpha is not None
    assert against.alpha < 0
    ties: dict[int, Answer] = dict.fromkeys(range(1, 41), "tie")
    assert report(key, {"tom": ties}).win_rate.value == 0.5
    with pytest.raises(TrainingError, match="no rater answered"):
        report(key, {"tom": {}})


def test_answers_become_preferences(key: Key, tmp_path: Path) -> None:
    sheet, _, _ = write_sheet(tmp_path, key)
    made = as_preferences(key, {"anna": read_answers(fill(sheet, tmp_path / "a.csv", "good"), key)})
    assert len(made) == 40
    assert all(p.chosen.startswith("good") and p.rater == "anna" for p in made)


def test_the_pages_answers_are_read_too(key: Key, tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text(f"row,answer,{key.digest}\r\n1,left\r\n2,\r\n3, Tie \r\n")
    assert read_answers(tmp_path / "answers.csv", key) == {1: "left", 3: "tie"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("row,answer,other\n1,left\n", r":1: not a filled copy of this key's sheet"),
        ("row,answer,DIGEST\n1,left\n2,middle\n", r":3: answer 'middle': write left, right or tie"),
        ("row,answer,DIGEST\n41,left\n", r":2: there is no row '41'; rows are 1 to 40"),
        ("row,answer,DIGEST\n1,left\n1,right\n", r":3: row 1 is answered twice, differently"),
        ("", r":1: not a filled copy"),
    ],
)
def test_wrong_sheets_are_told_with_their_line(key: Key, tmp_path: Path, rows: str, told: str) -> None:
    (tmp_path / "answers.csv").write_text(rows.replace("DIGEST", key.digest))
    with pytest.raises(DataError, match=told):
        read_answers(tmp_path / "answers.csv", key)
