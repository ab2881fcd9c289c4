"""Rendered examples as the rows that a trainer reads, one to a row or packed.

A label is -100 where nothing is learnt: by the example's own mask, never by a token's id, and always at an
example's first token, which has nothing before it to be predicted from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from training.data.epochs import Curriculum, arrange
from training.data.packing import Row, pack
from training.data.render import Example
from training.errors import TrainingError

IGNORED = -100


def to_dataset(rows: Sequence[Row]) -> Dataset:
    """Columns `input_ids`, `labels` and `seq_lengths`, the lengths of the row's examples."""
    return Dataset.from_dict(
        {
            "input_ids": [[i for example in row for i in example.ids] for row in rows],
            "labels": [[label for example in row for label in labels(example)] for row in rows],
            "seq_lengths": [[len(example) for example in row] for row in rows],
        }
    )


def to_rows(
    examples: Sequence[Example], packing: bool, length: int, curriculum: Curriculum, seed: int
) -> list[Row]:
    """The examples in the curriculum's order; packed, into rows of at most `length` tokens."""
    ordered = arrange(examples, curriculum, seed, len, lambda example: example.difficulty)
    return pack(ordered, length) if packing else [(example,) for example in ordered]


def labels(example: Example) -> list[int]:
    """What is to be predicted at each position, `IGNORED` where nothing is."""
    return [
        token if wanted and position > 0 else IGNORED
        for position, (token, wanted) in enumerate(zip(example.ids, example.supervised, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class PackedCollator:
    """Rows to `[B, T]` tensors, padded on the right.

    `position_ids` restart with every example, which is how transformers' attention (`sdpa`, `eager`) knows
    that they must not see each other; there is no attention mask. Each padding token is an example of its
    own, so nothing sees it.
    """

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        targets = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
        positions = torch.zeros((len(rows), width), dtype=torch.int64)
        for b, row in enumerate(rows):
            filled = len(row["input_ids"])
            input_ids[b, :filled] = torch.tensor(row["input_ids"])
            targets[b, :filled] = torch.tensor(row["labels"])
            positions[b, :filled] = torch.cat([torch.arange(n) for n in row["seq_lengths"]])
        return {"input_ids": input_ids, "labels": targets, "position_ids": positions}


@torch.no_grad()
def check_packing(model: PreTrainedModel, examples: Sequence[Example], pad_id: int) -> None:
    """Raise TrainingError where this architecture lets packed examples see each other."""
    training = model.training
    model.train(False)
    first, second = (Example(e.ids[:16], e.supervised[:16]) for e in (examples[0], examples[-1]))
    batch = PackedCollator(pad_id)(to_dataset([(first, second)]).to_list())
    batch.pop("labels")
    packed = model(**{name: t.to(model.device) for name, t in batch.items()}, use_cache=False).logits[
        0, len(first) :
    ]
    alone = model(input_ids=torch.tensor([second.ids], device=model.device), use_cache=False).logits[0]
    model.train(training)
    off = (packed - alone).abs().max() / alone.abs().max().clamp(min=1e-6)
    if not off < 0.05:
        raise TrainingError(
            f"packing: with {type(model).__name__} ({model.config._attn_implementation} attention) an "
            f"example's logits depend on the ones packed before it (by {off:.0%}); set packing: false"
        )
