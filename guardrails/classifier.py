"""Text classifiers behind one protocol, and the servables that put them into guard workers.

This module is light: the gateway imports it to read what workers answer. The backends, and numpy,
onnxruntime, torch or transformers with them, are imported where a classifier is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

Scores = Mapping[str, float]


class ClassifierError(Exception):
    """A classifier can't be made; the message names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A name in a text, in Presidio's fields; offsets in code points, end exclusive."""

    entity_type: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Output:
    """All that one pass over a text told: a probability for each label, and the entities in order.

    `stage` says which part of a cascade it was that answered; empty where there is none.
    """

    scores: Scores = field(default_factory=dict)
    entities: tuple[Entity, ...] = ()
    stage: Literal["", "exit", "encoder"] = ""


class Description(TypedDict):
    """What a servable says about itself. `thresholds`: label → target false-positive rate → score."""

    labels: list[str]
    entity_types: list[str]
    thresholds: dict[str, dict[str, float]]


class Classifier(Protocol):
    """Independent label probabilities for texts of any length.

    A text's answer depends on that text alone, never on the others in the call. Texts longer than the
    model's window are read in overlapping windows, of which each label's highest score counts.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...

    def predict(self, texts: Sequence[str]) -> list[Scores]: ...


class MultiHeadClassifier(Classifier, Protocol):
    """A classifier that finds entities in the same pass."""

    @property
    def entity_types(self) -> tuple[str, ...]: ...

    def entities(self, texts: Sequence[str]) -> list[tuple[Entity, ...]]: ...

    def run(self, texts: Sequence[str]) -> list[Output]: ...


class ClassifierServable:
    """A classifier as guard workers serve it: a payload is a text, a result its `Output`.

    Guards that ask the same servable about the same text share one pass.
    """

    def __init__(
        self, classifier: Classifier, thresholds: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        self._classifier = classifier
        self._thresholds = thresholds or {}

    def predict(self, batch: list[str]) -> list[Output]:
        run = getattr(self._classifier, "run", None)
        if run is not None:
            return list(run(batch))
        return [Output(scores) for scores in self._classifier.predict(batch)]

    def describe(self) -> Description:
        return {
            "labels": list(self._classifier.labels),
            "entity_types": list(getattr(self._classifier, "entity_types", ())),
            "thresholds": {label: dict(rates) for label, rates in self._thresholds.items()},
        }


def serve_onnx(folder: str) -> ClassifierServable:
    """A multi-head checkpoint of the registry: `model.onnx`, `tokenizer.json`, `classifier.json`."""
    from guardrails.classifier_onnx import OnnxClassifier

    classifier = OnnxClassifier.load(Path(folder))
    return ClassifierServable(classifier, classifier.thresholds)


def serve_transformers(folder: str) -> ClassifierServable:
    """Any `AutoModelForSequenceClassification` folder with safetensors weights."""
    from guardrails.classifier_torch import load_transformers

    return ClassifierServable(load_transformers(Path(folder)))


def serve_detoxify(
    name: str | None = None, path: str | None = None, sha256: str | None = None
) -> ClassifierServable:
    """Detoxify's model of that name from the local cache, or a checkpoint file of its format."""
    from guardrails.classifier_torch import load_detoxify, load_detoxify_file

    if path is not None and sha256 is not None:
        return ClassifierServable(load_detoxify_file(Path(path), sha256))
    if name is not None and path is None:
        return ClassifierServable(load_detoxify(name))
    raise ClassifierError("give a Detoxify model's name, or a checkpoint's path together with its sha256")


def windows(tokens: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Half-open windows of at most `size` tokens that cover `tokens`, neighbours sharing `overlap`.

    A text that fits is one window; the last one is as full as the others. No tokens: one empty window.
    """
    if tokens <= size:
        return [(0, tokens)]
    step = size - overlap
    starts = [*range(0, tokens - size, step), tokens - size]
    return [(start, start + size) for start in starts]


def highest(parts: Sequence[Scores]) -> dict[str, float]:
    """Each label's highest score over the windows of a text."""
    return {label: max(part[label] for part in parts) for label in parts[0]}


def scrubbed(text: str) -> str:
    """`text` with lone surrogates, which no tokenizer takes, replaced one for one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def check_sha256(data: bytes, expected: str, what: Any) -> None:
    """Raises ClassifierError unless `expected` (a digest or its first digits) is that of `data`."""
    from hashlib import sha256
    from hmac import compare_digest

    found = sha256(data).hexdigest()[: len(expected)]
    if not expected or not compare_digest(found, expected.lower()):
        raise ClassifierError(
            f"{what}: its sha256 begins with {found[:16]}…, not {expected[:16]}…; it was not opened. "
            "Get the file again from where it was published, or correct 'sha256' in the policy"
        )
