"""Names and places through a model that a policy names: a spaCy pipeline or a transformers token classifier.

Runs in a guard worker. Labels are those of Presidio, by its own table. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guardrails.classifier import ClassifierError, Entity, Output
from guardrails.imports import without
from guardrails.in_context import Excerpt

# Presidio's default table (`NerModelConfiguration`), and the label sets of common token classifiers.
ENTITY_TYPES = {
    "PER": "PERSON",
    "PERSON": "PERSON",
    "PATIENT": "PERSON",
    "STAFF": "PERSON",
    "LOC": "LOCATION",
    "GPE": "LOCATION",
    "FAC": "LOCATION",
    "LOCATION": "LOCATION",
    "HOSP": "LOCATION",
    "ORG": "ORGANIZATION",
    "ORGANIZATION": "ORGANIZATION",
    "NORP": "NRP",
    "NRP": "NRP",
    "DATE": "DATE_TIME",
    "TIME": "DATE_TIME",
    "DATE_TIME": "DATE_TIME",
    "AGE": "AGE",
    "ID": "ID",
    "EMAIL": "EMAIL_ADDRESS",
    "PHONE": "PHONE_NUMBER",
}
SPACY_SCORE = 0.85
"""spaCy gives no probabilities; this is what Presidio says in their place."""


class NerServable:
    """A payload is an `Excerpt`, a result its `Output` with entities and no scores."""

    def __init__(self, find: Any, labels: Iterable[str]) -> None:
        self._find = find
        self._types = sorted({ENTITY_TYPES[label] for label in labels if label in ENTITY_TYPES})

    def predict(self, batch: list[Excerpt]) -> list[Output]:
        return [Output(entities=tuple(found)) for found in self._find([excerpt.text for excerpt in batch])]

    def describe(self) -> dict[str, list[str]]:
        return {"labels": [], "entity_types": self._types}


def serve_spacy(package: str) -> NerServable:
    """A spaCy pipeline with an entity recognizer: an installed package's name, or a folder."""
    # spaCy, and what registers itself with it, imports these where it finds them: 12 seconds and 400 MiB
    # that only pipelines on transformers have a use for.
    try:
        with without() if package.endswith("_trf") else without("torch", "transformers"):
            import spacy

            nlp = spacy.load(package)
    except OSError as error:
        raise ClassifierError(
            f"spaCy pipeline {package!r} is neither installed nor a folder; install its package into Keel's "
            "environment (it is never downloaded at run time)"
        ) from error
    pipes: list[Any] = [nlp.get_pipe(name) for name in nlp.pipe_names if name in ("ner", "entity_ruler")]
    if not pipes:
        raise ClassifierError(f"spaCy pipeline {package!r} has no entity recognizer")

    def find(texts: list[str]) -> list[list[Entity]]:
        with nlp.memory_zone():
            return [
                [
                    Entity(ENTITY_TYPES[span.label_], span.start_char, span.end_char, SPACY_SCORE)
                    for span in nlp(text).ents
                    if span.label_ in ENTITY_TYPES
                ]
                for text in texts
            ]

    return NerServable(find, {label for pipe in pipes for label in pipe.labels})


def serve_transformers(folder: str) -> NerServable:
    """An `AutoModelForTokenClassification` folder with safetensors weights."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    torch.set_num_threads(1)
    if not list(Path(folder).glob("*.safetensors")):
        raise ClassifierError(f"{folder}: has no safetensors weights; other formats are not opened")
    model = AutoModelForTokenClassification.from_pretrained(
        folder, use_safetensors=True, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tag = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple")

    def find(texts: list[str]) -> list[list[Entity]]:
        # One text at a time: padding must not change what is found.
        return [
            [
                Entity(
                    ENTITY_TYPES[group["entity_group"]],
                    int(group["start"]),
                    int(group["end"]),
                    float(group["score"]),
                )
                for group in tag(text)
                if group["entity_group"] in ENTITY_TYPES
            ]
            for text in texts
        ]

    labels = {label.split("-", 1)[-1] for label in model.config.id2label.values()}
    return NerServable(find, labels)
