"""Evaluation by people: blind sheets out, their answers in, a win rate and how far the raters agree.

A sheet shows each prompt with two replies, left and right. Which policy is on which side is drawn for each
row from the seed, and stands in a key file that raters don't get. Answers are `left`, `right` or `tie`.

    sheet.csv, sheet.html    row, prompt, left, right, answer     (the page works offline and saves answers)
    key.json                 the seed, the policies' names, the side of the first one, and digests of all rows

The win rate is (wins + ties / 2) / rows, a row's outcome being the mean over its raters, with a bootstrap
over rows. Agreement is Krippendorff's alpha on left/right/tie, over the rows that several raters answered.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import ValidationError

from training.config import Config
from training.data.preferences import Preference, Prompt, as_prompt, prompt_as_json
from training.data.quality import krippendorff_alpha
from training.errors import DataError, TrainingError
from training.evaluate.human_page import page
from training.evaluate.metrics import Figure, mean

Answer = Literal["left", "right", "tie"]
COLUMNS = ("row", "prompt", "left", "right", "answer")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class KeyRow(Config):
    """One row of the sheet: its prompt, both replies by policy, and whether the first policy's is left."""

    prompt: str | list[dict[str, str]]
    a: str
    b: str
    a_is_left: bool


class Key(Config):
    """What raters must not see. `a` and `b` are the policies' names."""

    a: str
    b: str
    seed: int
    rows: tuple[KeyRow, ...]

    @property
    def digest(self) -> str:
        """Ties answers to this very sheet: a hash of all that it shows."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @classmethod
    def read(cls, path: Path) -> Key:
        """Raises TrainingError for a file that is no key."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise TrainingError(f"{path}: not the key of a sheet: {error}") from error


@dataclass(frozen=True, slots=True)
class HumanReport:
    """`outcomes` by row: the mean over raters of 1 (first policy), ½ (tie), 0. `alpha` is None where no row
    was answered by several raters."""

    a: str
    b: str
    outcomes: tuple[float, ...]
    raters: Mapping[str, int]
    alpha: float | None
    left: Figure
    seed: int

    @property
    def win_rate(self) -> Figure:
        return mean(self.outcomes, self.seed)

    def lines(self) -> list[str]:
        """The report for the terminal."""
        answered = ", ".join(f"{name} {count}" for name, count in self.raters.items())
        agreement = "–" if self.alpha is None else f"{self.alpha:.2f}"
        return [
            f"{self.a} against {self.b}: win rate {self.win_rate.percent()} over {len(self.outcomes)} rows",
            f"answers by rater: {answered}; agreement (Krippendorff's alpha) {agreement}",
            f"the left reply was preferred in {self.left.percent()} of all answers that are no tie",
        ]


def make_key(
    prompts: Sequence[Prompt],
    replies_a: Sequence[str],
    replies_b: Sequence[str],
    names: tuple[str, str],
    seed: int,
    most: int | None = None,
) -> Key:
    """Shuffle the rows, keep `most` of them, and draw the sides.

    Rows whose two replies are the same are left out, as there is no choice.
    As many of the first policy's replies are left as are right, or one more, whatever the seed.
    """
    rows = [
        (p, a, b) for p, a, b in zip(prompts, replies_a, replies_b, strict=True) if a.strip() != b.strip()
    ]
    if not rows:
        raise TrainingError("all pairs of replies are the same; there is nothing for people to compare")
    chance = random.Random(seed)
    chance.shuffle(rows)
    rows = rows[:most]
    sides = [place % 2 == 0 for place in range(len(rows))]
    chance.shuffle(sides)
    kept = tuple(
        KeyRow(prompt=prompt_as_json(prompt), a=a, b=b, a_is_left=left)
        for (prompt, a, b), left in zip(rows, sides, strict=True)
    )
    return Key(a=names[0], b=names[1], seed=seed, rows=kept)


def write_sheet(folder: Path, key: Key) -> tuple[Path, Path, Path]:
    """Write sheet.csv, sheet.html and key.json; the first two are what raters get."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [(_told(row), *_sides(row)) for row in key.rows]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow((*COLUMNS, key.digest))
    for number, texts in enumerate(shown, start=1):
        writer.writerow((number, *map(_plain, texts), ""))
    places = (folder / "sheet.csv", folder / "sheet.html", folder / "key.json")
    contents = (
        buffer.getvalue(),
        page(key.digest, [tuple(map(escape, t)) for t in shown]),
        key.model_dump_json(indent=1),
    )
    for place, content in zip(places, contents, strict=True):
        partial = place.with_name(f".{place.name}.partial")
        partial.write_text(content, encoding="utf-8", newline="")
        os.replace(partial, place)
    return places


def read_answers(path: Path, key: Key) -> dict[int, Answer]:
    """A rater's filled sheet: answers by row number. Empty ones are left out.

    Raises DataError with file and line for a wrong row, and for a sheet that is not this key's.
    """
    found: dict[int, Answer] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header[-1:] != [key.digest]:
                raise DataError(
                    path, 1, "not a filled copy of this key's sheet; keep its first line as it was"
                )
            place = header.index("answer")
            for row in reader:
                if not any(row):
                    continue
                number, answer = _row(path, reader.line_num, row, place, len(key.rows))
                if answer is not None and found.setdefault(number, answer) != answer:
                    raise DataError(path, reader.line_num, f"row {number} is answered twice, differently")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error
    return found


def report(key: Key, answers: Mapping[str, Mapping[int, Answer]]) -> HumanReport:
    """The raters' answers as a win rate of the key's first policy. Raises TrainingError without any."""
    by_row: dict[int, list[Answer]] = {}
    for sheet in answers.values():
        for number, answer in sheet.items():
            by_row.setdefault(number, []).append(answer)
    if not by_row:
        raise TrainingError("no rater answered any row")
    outcomes = [
        float(np.mean([_outcome(key.rows[number - 1], answer) for answer in given]))
        for number, given in sorted(by_row.items())
    ]
    decided = [float(a == "left") for given in by_row.values() for a in given if a != "tie"]
    return HumanReport(
        a=key.a,
        b=key.b,
        outcomes=tuple(outcomes),
        raters={name: len(sheet) for name, sheet in answers.items()},
        alpha=krippendorff_alpha([given for given in by_row.values() if len(given) > 1]),
        left=mean(decided, key.seed) if decided else Figure(0.5, 0.0, 1.0, 0),
        seed=key.seed,
    )


def as_preferences(key: Key, answers: Mapping[str, Mapping[int, Answer]]) -> list[Preference]:
    """The answers as training data: a preference for each that is no tie, with its rater."""
    made = []
    for rater, sheet in answers.items():
        for number, answer in sheet.items():
            row = key.rows[number - 1]
            outcome = _outcome(row, answer)
            if outcome == 0.5:
                continue
            chosen, rejected = (row.a, row.b) if outcome == 1 else (row.b, row.a)
            identity = f"{key.digest}-{number}"
            made.append(Preference(as_prompt(row.prompt), chosen, rejected, rater=rater, id=identity))
    return made


def _row(path: Path, line: int, row: Sequence[str], place: int, count: int) -> tuple[int, Answer | None]:
    number, answer = row[0].strip(), (row[place] if len(row) > place else "").strip().lower()
    if not number.isdigit() or not 1 <= int(number) <= count:
        raise DataError(path, line, f"there is no row {number!r}; rows are 1 to {count}")
    for known in get_args(Answer):
        if answer == known:
            return int(number), known
    if answer:
        raise DataError(path, line, f"answer {answer!r}: write left, right or tie, or leave it empty")
    return int(number), None


def _outcome(row: KeyRow, answer: Answer) -> float:
    if answer == "tie":
        return 0.5
    return float((answer == "left") == row.a_is_left)


def _sides(row: KeyRow) -> tuple[str, str]:
    return (row.a, row.b) if row.a_is_left else (row.b, row.a)


def _told(row: KeyRow) -> str:
    prompt = as_prompt(row.prompt)
    if len(prompt) == 1:
        return prompt[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in prompt)


def _plain(text: str) -> str:
    """So that a spreadsheet takes a text for a text, and never for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
