"""Asking a judge many questions, and keeping each answer at once: what was answered is never asked again.

A judge's answers cost time or money, so they are kept as they come (`training.batch`). A run that was
killed goes on with the questions that have no answer yet; those that the judge failed on are asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from training.batch import map_rows
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
    found = map_rows(items, ask, workers=workers, keep=keep, errors=JudgeError, title=title)
    return [row if isinstance(row, JudgeError) else _row(row) for row in found]


def _row(row: Row | Exception) -> Row:
    if isinstance(row, Exception):
        raise row  # nothing but a JudgeError is a row's own
    return row
