"""What the published encoder says of the texts that its first stage learns from, computed once and kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.first_stage import Text
from training.evaluate.scorer import Scorer
from training.methods.classifier_model import case_type

Floats = NDArray[np.float32]
LONGEST_ROW = 254
"""Tokens of a text that are learnt from; the rest of it is left out, and the encoder isn't shown it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """N texts as tokens, laid end to end: text i is `ids[starts[i]:starts[i + 1]]`.

    targets_NH: the encoder's probability for each head: its labels, then for each kind of name the most
        likely word's.
    """

    heads: tuple[str, ...]
    sources: tuple[str, ...]
    starts: NDArray[np.int64]
    ids: NDArray[np.int32]
    types: NDArray[np.int8]
    targets_NH: Floats

    def __len__(self) -> int:
        return len(self.sources)

    def write(self, path: Path) -> None:
        content: dict[str, Any] = {
            "heads": np.array(self.heads),
            "sources": np.array(self.sources),
            "starts": self.starts,
            "ids": self.ids,
            "types": self.types,
            "targets": self.targets_NH,
        }
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **content)
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Scored:
        with np.load(path) as file:
            return cls(
                tuple(map(str, file["heads"])),
                tuple(map(str, file["sources"])),
                file["starts"],
                file["ids"],
                file["types"],
                file["targets"],
            )


def heads(scorer: Scorer) -> tuple[str, ...]:
    """The first stage's outputs: the encoder's labels and its kinds of names."""
    return (*scorer.labels, *scorer.kinds)


def targets(scorer: Scorer, text: str) -> tuple[list[int], list[int], Floats]:
    """Tokens, case types, and the encoder's score for each head."""
    reading = scorer.read(text)
    labels = scorer.calibrated(reading.logits_L[None, :].astype(float))[0]
    _, words_WE = scorer.words(reading)
    names = words_WE.max(axis=0, initial=0.0)
    types = [case_type(text[start:end]) for start, end in reading.offsets]
    return reading.ids, types, np.concatenate([labels, names]).astype(np.float32)


def score(scorer: Scorer, texts: Sequence[Text], say: str = "") -> Scored:
    """Every text that fits, under the encoder."""
    kept, all_ids, all_types, rows = [], [], [], []
    began = time.monotonic()
    for number, text in enumerate(texts, 1):
        if number % 5_000 == 0:
            print(f"{say}: {number} of {len(texts)}, {time.monotonic() - began:.0f} s", flush=True)
        if len(text.text) > 4 * LONGEST_ROW:
            text = Text(text.text[: 4 * LONGEST_ROW].rsplit(" ", 1)[0], text.source)
        ids, types, row = targets(scorer, text.text)
        if ids and len(ids) <= LONGEST_ROW:
            kept.append(text.source)
            all_ids.append(ids)
            all_types.append(types)
            rows.append(row)
    lengths = np.array([0, *map(len, all_ids)], np.int64)
    return Scored(
        heads(scorer),
        tuple(kept),
        np.cumsum(lengths),
        np.concatenate(all_ids).astype(np.int32),
        np.concatenate(all_types).astype(np.int8),
        np.stack(rows),
    )
