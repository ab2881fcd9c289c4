"""The order in which examples are seen: a pure function of the seed, so that a run resumes anywhere.

A curriculum (Bengio et al. 2009) goes through the data from easy to hard, in every epoch alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

from training.data.packing import Row, pack
from training.data.render import Example
from training.errors import TrainingError

T = TypeVar("T")

# `shuffled` anew in every epoch; `given`: the files' order; `short_first`: by the number of tokens;
# `easy_first`: by the data's own column `difficulty`, a number.
Curriculum = Literal["shuffled", "given", "short_first", "easy_first"]


def arrange(
    items: Sequence[T],
    curriculum: Curriculum,
    seed: int,
    length: Callable[[T], int],
    difficulty: Callable[[T], float | None],
) -> list[T]:
    """The items in the curriculum's order, equal ones shuffled by the seed.

    Raises TrainingError where `easy_first` meets an item without difficulty.
    """
    if curriculum in ("shuffled", "given"):
        return list(items)
    shuffled = random.Random(f"{seed}/curriculum").sample(items, len(items))
    if curriculum == "short_first":
        return sorted(shuffled, key=length)

    def rank(item: T) -> float:
        value = difficulty(item)
        if value is None:
            raise TrainingError(
                "curriculum: easy_first needs a number in the column `difficulty` of every row; name the "
                "file's own column in its source (columns: {difficulty: NAME}) or use short_first"
            )
        return value

    return sorted(shuffled, key=rank)


def epoch_rows(examples: Sequence[Example], seed: int, epoch: int, row_length: int) -> list[Row]:
    """The epoch's packed rows; a pure function of its arguments."""
    chance = random.Random(f"{seed}/{epoch}")
    rows = pack(chance.sample(examples, len(examples)), row_length)
    chance.shuffle(rows)
    return rows


def steps_from(
    examples: Sequence[Example], seed: int, row_length: int, rows_per_step: int, start: int
) -> Iterator[list[Row]]:
    """The rows of step `start`, `start + 1`, …, without end; an epoch's incomplete last step is dropped."""
    epoch, first = 0, 0
    while True:
        rows = epoch_rows(examples, seed, epoch, row_length)
        count = len(rows) // rows_per_step
        if count == 0:
            raise TrainingError(
                f"the data fills {len(rows)} rows of {row_length} tokens, fewer than rows_per_step "
                f"({rows_per_step}); lower rows_per_step or add data"
            )
        for index in range(max(0, start - first), count):
            yield rows[index * rows_per_step : (index + 1) * rows_per_step]
        epoch, first = epoch + 1, first + count
