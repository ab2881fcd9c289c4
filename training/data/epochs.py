"""The order in which examples are seen: a pure function of the seed, so that a run resumes anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from training.data.packing import Row, pack
from training.data.render import Example
from training.errors import TrainingError


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
