"""What the published encoder says of the texts that its early exit learns from, and its hidden states where
the exit is, computed once and kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from training.data.early_exit import Text
from training.evaluate.scorer import Reading, Scorer

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
MOST_CHARACTERS = 1_200
"""Of a text; a window of the encoder is what is learnt from, and is shorter."""
REACH = 3
"""Tokens that a text needs; shorter ones are left to the encoder."""


@dataclass(frozen=True, slots=True)
class Scored:
    """N texts of one window each, laid end to end: text i is the rows `[starts[i], starts[i + 1])`, with the
    tokens that the encoder puts before and after it.

    heads: the exit's outputs: the encoder's labels, then its kinds of names.
    targets_NH: the encoder's probability for each head; for a kind of name the most likely word's.
    states_TD: the hidden states at the exit; names_TE: how likely each token's word is part of a name.
    """

    heads: tuple[str, ...]
    sources: tuple[str, ...]
    starts: NDArray[np.int64]
    targets_NH: Floats
    states_TD: Halves
    names_TE: Halves

    def __len__(self) -> int:
        return len(self.sources)

    @classmethod
    def read(cls, folder: Path) -> Scored:
        """What `score` wrote. States and names stay on disk until rows of them are used."""
        with np.load(folder / "scored.npz") as file:
            starts = file["starts"]
            heads, sources = (tuple(map(str, file[name])) for name in ("heads", "sources"))
            targets_NH, shapes = file["targets"], file["widths"]
        states_TD, names_TE = (
            np.memmap(folder / name, np.float16, "r", shape=(int(starts[-1]), int(width)))
            for name, width in zip(("states", "names"), shapes, strict=True)
        )
        return cls(heads, sources, starts, targets_NH, states_TD, names_TE)


def tapped(model: Path, at: str) -> bytes:
    """The encoder with one output more: its hidden states `at` a tensor."""
    graph = onnx.load(model)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(at, onnx.TensorProto.FLOAT, [1, None, None]))
    return bytes(graph.SerializeToString())


def _targets(scorer: Scorer, reading: Reading) -> tuple[Floats, Floats]:
    """How likely each token's word is part of a name of each kind, none at the ends `[T + 2, E]`; and the
    encoder's score for each head `[H]`."""
    labels_L = scorer.calibrated(reading.logits_L[None, :].astype(float))[0]
    bounds, words_WE = scorer.words(reading)
    names_TE = np.zeros((len(reading.ids) + 2, len(scorer.kinds)), np.float32)
    names_TE[1:-1] = np.repeat(words_WE, [last - first for first, last in bounds], axis=0)
    return names_TE, np.concatenate([labels_L, words_WE.max(axis=0)]).astype(np.float32)


def score(scorer: Scorer, texts: Sequence[Text], folder: Path) -> None:
    """Every text's first window under the encoder, which tells its states at the exit, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    starts, sources, targets, widths = [0], [], [], (0, 0)
    began = time.monotonic()
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in ("states", "names")]
        for number, text in enumerate(texts, 1):
            if number % 5_000 == 0:
                said = f"{folder.name}: {number} of {len(texts)}, {time.monotonic() - began:.0f} s"
                print(said, flush=True)
            reading = scorer.read(scorer.first_window(text.text[:MOST_CHARACTERS]))
            if len(reading.ids) < REACH or len(reading.states) != 1:
                continue
            states_TD, (names_TE, target_H) = reading.states[0], _targets(scorer, reading)
            for file, rows in zip(files, (states_TD, names_TE), strict=True):
                file.write(rows.astype(np.float16).tobytes())
            starts.append(starts[-1] + len(states_TD))
            sources.append(text.source)
            targets.append(target_H)
            widths = states_TD.shape[1], names_TE.shape[1]
    content: dict[str, Any] = {
        "heads": np.array((*scorer.labels, *scorer.kinds)),
        "sources": np.array(sources),
        "starts": np.array(starts, np.int64),
        "targets": np.stack(targets).astype(np.float32),
        "widths": np.array(widths),
    }
    partial = folder / "partial.npz"
    np.savez_compressed(partial, **content)
    partial.replace(folder / "scored.npz")
