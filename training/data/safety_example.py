"""One row for the safety classifier, and the labels that there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.data.entities import Spans
from training.data.safety_written import HARMLESS, SUBJECTS, TOXIC

TOXICITY_LABELS = TOXIC
"""Detoxify's."""
LABELS = (*TOXIC, *SUBJECTS, "injection", "harm", "unsafe_reply")
IMPLIED = {label: "toxicity" for label in ("severe_toxicity", "insult", "identity_attack", "threat")}
"""Kinds of toxicity, in Jigsaw's definitions: a text is never more likely of a kind than toxic at all."""
CLEAN = HARMLESS
"""A harmless text's labels. What it would be as a reply is not among them: that needs a prompt."""
INJECTION: Mapping[str, float] = {"injection": 1.0}
NO_INJECTION: Mapping[str, float] = {"injection": 0.0}


@dataclass(frozen=True, slots=True)
class Example:
    """A text, its known labels as probabilities, and its entity spans (None where they are not marked)."""

    text: str
    labels: Mapping[str, float]
    source: str
    spans: Spans | None = None


@dataclass(frozen=True, slots=True)
class SafetyData:
    """`train`; `dev`, rows of trained sources kept for calibration; `test`, by name, what was held out."""

    train: list[Example]
    dev: list[Example]
    test: dict[str, list[Example]]
