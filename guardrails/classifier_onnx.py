"""The embedded default: one small ONNX encoder with a head per task, in a guard worker.

Every window of every text is a run of its own, without padding. Dynamic int8 quantisation takes its
scale from the whole input tensor, so this is what makes a score a function of the text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from guardrails.classifier import ClassifierError, Entity, Output, Scores, highest, scrubbed, windows
from guardrails.graph_cut import GraphError, cut

Floats = NDArray[np.float32]

# What onnxruntime (1.31) does to the graph by itself and makes slower, on one thread: a fused addition and
# layer normalisation take 20 to 25 % of a pass more than the two apart. Its CPU flash attention, which
# `open_session` turns off, adds 5 to 10 % at these lengths.
SLOW_FUSIONS = ("SkipLayerNormFusion",)


@dataclass(frozen=True, slots=True)
class Settings:
    """`classifier.json` of a checkpoint.

    `calibration`: per label the (a, b) of Platt's p = σ(a z + b); `tag_temperature` divides the tags'
    logits; entities below `entity_floor` are not reported. `implied`: label → the label it is a kind of,
    whose score it can't exceed.
    """

    labels: tuple[str, ...]
    tags: tuple[str, ...]
    max_tokens: int
    overlap: int
    calibration: Mapping[str, tuple[float, float]]
    tag_temperature: float
    entity_floor: float
    thresholds: Mapping[str, Mapping[str, float]]
    implied: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Settings:
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            settings = cls(
                tuple(content["labels"]),
                tuple(content["tags"]),
                int(content["max_tokens"]),
                int(content["overlap"]),
                {label: (float(a), float(b)) for label, (a, b) in content["calibration"].items()},
                float(content["tag_temperature"]),
                float(content["entity_floor"]),
                content.get("thresholds", {}),
                content.get("implied", {}),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClassifierError(
                f"{path}: not a classifier's settings ({error!r}); publish the checkpoint again"
            ) from error
        known = set(settings.labels)
        named = {*settings.implied.keys(), *settings.implied.values()}
        windows_fit = 0 <= settings.overlap < settings.max_tokens - 2
        if not windows_fit or settings.calibration.keys() != known or not named <= known:
            raise ClassifierError(
                f"{path}: its windows or its calibration don't fit its labels; publish the checkpoint again"
            )
        return settings


def case_type(piece: str) -> int:
    """How a token is written: 0 without a leading capital, 1 with one, 2 all capitals (two or more)."""
    if not piece[:1].isupper():
        return 0
    return 2 if len(piece) > 1 and piece.isupper() else 1


def open_session(path: Path, part: bytes | None = None) -> ort.InferenceSession:
    """One thread, no spinning, no arena: a worker shares its core with others and its memory stays flat.

    `part`: a model cut out of the one in `path`, to be opened in its place.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    os.environ.setdefault("ORT_DISABLE_FLASH_ATTENTION", "1")
    try:
        return ort.InferenceSession(
            part or str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(SLOW_FUSIONS),
        )
    except Exception as error:  # onnxruntime's own exception types have no common public base
        raise ClassifierError(f"{path}: onnxruntime can't load it ({type(error).__name__})") from error


@dataclass(frozen=True, slots=True)
class Begun:
    """A text as tokens in windows, and of each window what `OnnxClassifier.finish` goes on from.

    `states`: each window's feed for the rest of the graph: the hidden states `[1, T + 2, D]` at the cut, or
    the tokens where the graph is whole.
    """

    text: str
    encoding: Encoding
    windows: Sequence[tuple[int, int]]
    states: Sequence[Mapping[str, NDArray[Any]]]


class OnnxClassifier:
    """Labels and entities of texts, from one pass. Not thread-safe: one per worker.

    With `lower`, the graph's lower layers, `begin` runs those and `finish` the rest; else `finish` runs all.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        tokenizer: Tokenizer,
        settings: Settings,
        lower: ort.InferenceSession | None = None,
    ) -> None:
        self._session = session
        self._lower = lower
        self._tokenizer = tokenizer
        self._settings = settings
        self._first, self._last = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
        scale = [settings.calibration[label] for label in settings.labels]
        self._slope, self._shift = (np.array(part, np.float32) for part in zip(*scale, strict=True))
        # Which columns of the tags are B-X and I-X, for every X.
        kinds = dict.fromkeys(tag[2:] for tag in settings.tags if tag != "O")
        self._kinds = tuple(kinds)
        self._begins = [settings.tags.index(f"B-{kind}") for kind in kinds]
        self._insides = [settings.tags.index(f"I-{kind}") for kind in kinds]

    @classmethod
    def load(cls, folder: Path, at: str | None = None) -> OnnxClassifier:
        """The checkpoint in `folder`, its graph cut in two `at` a tensor where one is given.

        Raises ClassifierError naming the file that is missing or wrong.
        """
        for name in ("model.onnx", "tokenizer.json", "classifier.json"):
            if not (folder / name).is_file():
                raise ClassifierError(f"{folder}: {name} is missing; publish the checkpoint again")
        settings = Settings.read(folder / "classifier.json")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        path = folder / "model.onnx"
        if at is None:
            return cls(open_session(path), tokenizer, settings)
        try:
            lower, upper = cut(path.read_bytes(), at)
        except GraphError as error:
            raise ClassifierError(f"{path}: {error}; publish the exit again") from error
        return cls(open_session(path, upper), tokenizer, settings, open_session(path, lower))

    @property
    def labels(self) -> tuple[str, ...]:
        return self._settings.labels

    @property
    def entity_types(self) -> tuple[str, ...]:
        return self._kinds

    @property
    def thresholds(self) -> Mapping[str, Mapping[str, float]]:
        """For each label the scores that flag a stated share of harmless texts."""
        return self._settings.thresholds

    def predict(self, texts: Sequence[str]) -> list[Scores]:
        return [output.scores for output in self.run(texts)]

    def entities(self, texts: Sequence[str]) -> list[tuple[Entity, ...]]:
        return [output.entities for output in self.run(texts)]

    def run(self, texts: Sequence[str]) -> list[Output]:
        """One `Output` per text, in order."""
        return [self.finish(self.begin(text)) for text in texts]

    def begin(self, text: str) -> Begun:
        """The tokens of `text`, and the lower layers' work on them where the graph was cut."""
        text = scrubbed(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = encoding.ids
        types = [case_type(text[start:end]) for start, end in encoding.offsets]
        parts = windows(len(ids), self._settings.max_tokens - 2, self._settings.overlap)
        feeds = [
            {
                "input_ids": np.array([[self._first, *ids[start:end], self._last]], np.int64),
                "token_type_ids": np.array([[0, *types[start:end], 0]], np.int64),
            }
            for start, end in parts
        ]
        if self._lower is None:
            return Begun(text, encoding, parts, feeds)
        name = self._lower.get_outputs()[0].name
        return Begun(text, encoding, parts, [{name: self._lower.run([name], feed)[0]} for feed in feeds])

    def finish(self, begun: Begun) -> Output:
        """What the whole encoder says of the text."""
        encoding, overlap = begun.encoding, self._settings.overlap
        scores: list[Scores] = []
        tags: list[Floats] = []
        covered = 0
        for (start, end), state in zip(begun.windows, begun.states, strict=True):
            logits, window_tags = self._session.run(["labels", "tags"], state)
            p_L = _sigmoid(self._slope * logits[0] + self._shift)
            scores.append(dict(zip(self.labels, p_L.tolist(), strict=True)))
            # A token in the overlap is tagged by the window in which it stands farther from the edge.
            cut_at = end if end == len(encoding.ids) else end - overlap // 2
            tags.append(window_tags[0, 1:-1][covered - start : cut_at - start])
            covered = cut_at
        words = self._words(
            encoding.word_ids,
            encoding.offsets,
            _softmax(np.concatenate(tags) / self._settings.tag_temperature),
        )
        labels = highest(scores)
        for kind, parent in self._settings.implied.items():
            labels[kind] = min(labels[kind], labels[parent])
        return Output(labels, tuple(self._spans(begun.text, words)))

    def _words(
        self, word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]], p_TK: Floats
    ) -> list[tuple[Entity, bool]]:
        """Words that are part of a name, and whether each begins one; a word's tags are its tokens' mean."""
        if not offsets or not self._kinds:
            return []
        firsts = [i for i, word in enumerate(word_ids) if i == 0 or word != word_ids[i - 1]]
        ends = np.array([*firsts[1:], len(offsets)])
        p_WK = np.add.reduceat(p_TK, firsts, axis=0) / (ends - firsts)[:, None]
        kinds_WE = p_WK[:, self._begins] + p_WK[:, self._insides]
        found: list[tuple[Entity, bool]] = []
        for w in np.flatnonzero(kinds_WE.max(axis=1) >= self._settings.entity_floor):
            first, best = firsts[w], int(kinds_WE[w].argmax())
            begins = bool(p_TK[first, self._begins[best]] > p_TK[first, self._insides[best]])
            start, end = offsets[first][0], offsets[ends[w] - 1][1]
            found.append((Entity(self._kinds[best], start, end, float(kinds_WE[w, best])), begins))
        return found

    def _spans(self, text: str, words: Sequence[tuple[Entity, bool]]) -> list[Entity]:
        """Neighbouring words of one kind joined; a span's score is its words' mean, by length."""
        spans: list[Entity] = []
        for word, begins in words:
            last = spans[-1] if spans else None
            joins = (
                last is not None
                and last.entity_type == word.entity_type
                and not text[last.end : word.start].strip()
            )
            if last is not None and joins and not begins:
                weight, added = last.end - last.start, word.end - word.start
                score = (last.score * weight + word.score * added) / (weight + added)
                spans[-1] = Entity(last.entity_type, last.start, word.end, score)
            else:
                spans.append(word)
        return spans


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -30.0, 30.0))), np.float32)


def _softmax(z_TK: Floats) -> Floats:
    p_TK = np.exp(z_TK - z_TK.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(p_TK / p_TK.sum(axis=-1, keepdims=True), np.float32)
