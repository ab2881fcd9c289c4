"""Packing: several examples in one row, none of which sees another.

Rows are filled first-fit in the given order (Johnson 1973) with a bounded number of open rows. A packed
row carries positions that restart with every example and a block-diagonal causal mask, so that a packed
example has the logits that it has alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.render import Example

Row = tuple[Example, ...]

_OPEN_ROWS = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of T tokens.

    `input_ids_BT` int64; `position_ids_BT` int64, restarting with every example; `attention_B1TT` bool,
    True where a query (third axis) may look at a key (fourth); `supervised_BT` bool, True where the token
    at t is to be predicted (from t - 1), never at an example's first token.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    attention_B1TT: Tensor
    supervised_BT: Tensor


def pack(examples: Iterable[Example], row_length: int) -> list[Row]:
    """Distribute the examples over rows of at most `row_length` tokens, none split, none lost."""
    rows: list[list[Example]] = []
    open_rows: list[tuple[int, list[Example]]] = []
    for example in examples:
        if len(example) > row_length:
            raise ValueError(f"an example of {len(example)} tokens does not fit a row of {row_length}")
        for index, (free, row) in enumerate(open_rows):
            if len(example) <= free:
                row.append(example)
                open_rows[index] = (free - len(example), row)
                break
        else:
            row = [example]
            rows.append(row)
            open_rows.append((row_length - len(example), row))
            if len(open_rows) > _OPEN_ROWS:
                open_rows.remove(min(open_rows, key=lambda entry: entry[0]))
    return [tuple(row) for row in rows]


def collate(rows: Sequence[Row], row_length: int, pad_id: int) -> Batch:
    """Rows to tensors, padded on the right. Padding sees itself only, and nothing sees it."""
    shape = (len(rows), row_length)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    supervised = torch.zeros(shape, dtype=torch.bool)
    document = torch.full(shape, -1, dtype=torch.int64)
    for b, row in enumerate(rows):
        offset = 0
        for number, example in enumerate(row):
            span = slice(offset, offset + len(example))
            input_ids[b, span] = torch.tensor(example.ids)
            position_ids[b, span] = torch.arange(len(example))
            supervised[b, span] = torch.tensor(example.supervised)
            supervised[b, offset] = False
            document[b, span] = number
            offset += len(example)
    same = document[:, :, None] == document[:, None, :]
    causal = torch.ones(row_length, row_length, dtype=torch.bool).tril()
    itself = torch.eye(row_length, dtype=torch.bool)
    padding = (document == -1)[:, :, None]
    attention = torch.where(padding, itself, same & causal)
    return Batch(input_ids, position_ids, attention[:, None], supervised)
