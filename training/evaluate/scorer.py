"""Runs an exported safety classifier as the gateway does: one window of one text at a time.

The training side does not import the gateway's code, so the reading of windows and tags is written here
once more; a test holds both to the same answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.methods.classifier_model import case_type

Floats = NDArray[np.floating[Any]]
Spans = list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class Reading:
    """One text's raw answer: each label's highest logit, every token's tag logits, and the tokens.

    `states`: of each window `[T + 2, D]`, the hidden states that were asked for.
    """

    ids: list[int]
    logits_L: Floats
    tags_TK: Floats
    offsets: list[tuple[int, int]]
    words: list[int]
    states: list[Floats]


FUSIONS_OFF = ("SkipLayerNormFusion",)
"""As the gateway runs the graph, and without flash attention: otherwise an int8 activation may round to its
other neighbour."""


def session(model: Path | bytes) -> ort.InferenceSession:
    """One thread, nothing shared."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    os.environ.setdefault("ORT_DISABLE_FLASH_ATTENTION", "1")
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(FUSIONS_OFF)
    )


class Scorer:
    """`folder` holds `tokenizer.json` and `classifier.json`; `model` is the graph to run.

    `states`: an output of the graph beside the labels and tags, told with each reading.
    """

    def __init__(self, folder: Path, model: Path | bytes, states: str | None = None) -> None:
        about = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        self.labels: tuple[str, ...] = tuple(about["labels"])
        self.tags: tuple[str, ...] = tuple(about["tags"])
        self.size = int(about["max_tokens"]) - 2
        self.overlap = int(about.get("overlap", 32))
        self.platt = np.array([about.get("calibration", {}).get(label, (1.0, 0.0)) for label in self.labels])
        self._implied = [
            (self.labels.index(kind), self.labels.index(parent))
            for kind, parent in about.get("implied", {}).items()
        ]
        self.kinds: tuple[str, ...] = tuple(dict.fromkeys(t[2:] for t in self.tags if t != "O"))
        self.temperature = float(about.get("tag_temperature", 1.0))
        self.floor = float(about.get("entity_floor", 0.5))
        self._outputs = ["labels", "tags", *([states] if states else ())]
        self._session = session(model)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._ends = [self._tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]")]

    def read(self, text: str) -> Reading:
        """Raw logits of one text."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        types = [case_type(text[a:b]) for a, b in offsets]
        step, labels, tags, states, covered, start = self.size - self.overlap, [], [], [], 0, 0
        while True:
            start = max(0, min(start, len(ids) - self.size))
            end = min(len(ids), start + self.size)
            feed = {
                "input_ids": np.array([[self._ends[0], *ids[start:end], self._ends[1]]], np.int64),
                "token_type_ids": np.array([[0, *types[start:end], 0]], np.int64),
            }
            label_logits, tag_logits, *others = self._session.run(self._outputs, feed)
            labels.append(label_logits[0])
            states += [hidden[0] for hidden in others]
            cut = end if end == len(ids) else end - self.overlap // 2
            tags.append(tag_logits[0, 1:-1][covered - start : cut - start])
            covered = cut
            if end == len(ids):
                break
            start += step
        return Reading(
            ids,
            np.max(labels, axis=0),
            np.concatenate(tags),
            offsets,
            [w if w is not None else -1 for w in encoding.word_ids],
            states,
        )

    def first_window(self, text: str) -> str:
        """As much of `text` as the encoder reads at once."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return text[: offsets[self.size - 1][1]] if len(offsets) > self.size else text

    def logits(self, texts: Sequence[str]) -> Floats:
        """`[B, L]`: each text's highest logit per label."""
        return np.stack([self.read(text).logits_L for text in texts])

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """`[B, L]`, calibrated."""
        return self.calibrated(self.logits(texts))

    def calibrated(self, logits_BL: Floats) -> Floats:
        """Probabilities of logits; those of a kind at most those of what it is a kind of."""
        p_BL = sigmoid(self.platt[:, 0] * logits_BL + self.platt[:, 1])
        for kind, parent in self._implied:
            p_BL[:, kind] = np.minimum(p_BL[:, kind], p_BL[:, parent])
        return p_BL

    def words(self, reading: Reading) -> tuple[list[tuple[int, int]], Floats]:
        """The words' `(first, end)` tokens, and `[W, E]`: how likely each is part of a name of each kind."""
        p_TK = softmax(reading.tags_TK / self.temperature)
        bounds: list[tuple[int, int]] = []
        for token, word in enumerate(reading.words):
            if token and word == reading.words[token - 1]:
                bounds[-1] = (bounds[-1][0], token + 1)
            else:
                bounds.append((token, token + 1))
        if not bounds:
            return [], np.zeros((0, len(self.kinds)))
        mean_WK = np.stack([p_TK[first:end].mean(axis=0) for first, end in bounds])
        begins, insides = ([self.tags.index(f"{p}-{k}") for k in self.kinds] for p in "BI")
        return bounds, mean_WK[:, begins] + mean_WK[:, insides]

    def spans(self, text: str) -> Spans:
        """Entities at or above the checkpoint's floor."""
        reading = self.read(text)
        p_TK = softmax(reading.tags_TK / self.temperature)
        found: Spans = []
        for (first, last), scores_E in zip(*self.words(reading), strict=True):
            best = int(np.argmax(scores_E))
            if scores_E[best] >= self.floor:
                kind = self.kinds[best]
                begins = p_TK[first, self.tags.index(f"B-{kind}")] > p_TK[first, self.tags.index(f"I-{kind}")]
                start, end = reading.offsets[first][0], reading.offsets[last - 1][1]
                if found and not begins and found[-1][0] == kind and not text[found[-1][2] : start].strip():
                    found[-1] = (kind, found[-1][1], end)
                else:
                    found.append((kind, start, end))
        return found


def sigmoid(z: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -30, 30))))


def softmax(z: Floats) -> Floats:
    p = np.exp(z - z.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(p / p.sum(axis=-1, keepdims=True))
