"""Asking a judge many questions, and keeping each answer at once: what was answered is never asked again.

A judge's answers cost time or money, so they are appended to a file as they come. A run that was killed
goes on with the questions that have no answer yet; those that the judge failed on are asked again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import track

from training.files import disk_errors
from training.judge.client import JudgeError

_T = TypeVar("_T")
Row = dict[str, Any]


def answers(
    items: Sequence[_T],
    ask: Callable[[_T], Row],
    workers: int = 1,
    keep: Path | None = None,
    title: str = "judging",
) -> list[Row | JudgeError]:
    """`ask` of every item, in order, `workers` at a time; where the judge fails, its error.

    keep: a file of JSON lines, one for each item that was answered, with its place under "item".
    """
    known = _read(keep) if keep is not None else {}
    found: dict[int, Row | JudgeError] = {i: row for i, row in known.items() if i < len(items)}
    missing = [i for i in range(len(items)) if i not in found]

    def one(place: int) -> tuple[int, Row | JudgeError]:
        try:
            return place, ask(items[place])
        except JudgeError as error:
            return place, error

    with ThreadPoolExecutor(workers) as pool:
        arriving = pool.map(one, missing)
        if keep is not None:
            arriving = track(arriving, title, total=len(missing))  # type: ignore[assignment]
        for place, answer in arriving:
            found[place] = answer
            if keep is not None and not isinstance(answer, JudgeError):
                with disk_errors(keep), keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"item": place, **answer}, ensure_ascii=False) + "\n")
    return [found[place] for place in range(len(items))]


def _read(path: Path) -> dict[int, Row]:
    """The answers in `path` by item; a last line that was cut short is dropped from the file."""
    if not path.is_file():
        return {}
    found: dict[int, Row] = {}
    good = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
            found[row.pop("item")] = row
        except (ValueError, KeyError, AttributeError):
            break
        if not line.endswith(b"\n"):
            break
        good += len(line)
    with path.open("r+b") as file:
        file.truncate(good)
    return found
