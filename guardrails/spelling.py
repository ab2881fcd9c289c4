"""Texts with two neighbouring letters swapped, read as they were meant, beside as they stand.

A word that the encoder's vocabulary doesn't have falls into pieces that mean little, so a swap in each word
hides an attack from it as well as a cipher does, and from a person hardly at all. Where swapping two letters
back gives a word of the vocabulary, the text so mended is scored as well, and the highest score counts. Of
ordinary texts some in a hundred have such a word; the others cost a look at each of their words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from guardrails.classifier import Output
from guardrails.in_context import Describing, Excerpt

SHORTEST = 4
"""Letters of a word that is mended: shorter ones are abbreviations as often as not."""
_WORD = re.compile(rf"(?<![\w'.@/-])[A-Za-z]{{{SHORTEST},24}}(?![\w'@/-]|\.\w)")

Words = Mapping[str, int]
"""Known words, in lower case, and their ranks: the lower, the more frequent."""


def read_words(folder: Path) -> Words:
    """The whole words in a checkpoint's vocabulary, which stands in the order of their frequency; none where
    the tokenizer isn't one of word pieces."""
    vocabulary = json.loads((folder / "tokenizer.json").read_bytes())["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        return {}
    return {word: rank for word, rank in vocabulary.items() if word.isascii() and word.isalpha()}


def mended(text: str, words: Words) -> str:
    """`text` with unknown words that are two swapped letters away from a known one put right. As long as
    `text`, letter for letter; words in capitals only are left as they are where others aren't."""
    shouted = text.isupper()

    def put_right(match: re.Match[str]) -> str:
        word = match[0]
        lower = word.lower()
        if lower in words or (word.isupper() and not shouted):
            return word
        swaps = (lower[:i] + lower[i + 1] + lower[i] + lower[i + 2 :] for i in range(len(lower) - 1))
        meant = min((swap for swap in swaps if swap in words), key=words.__getitem__, default=lower)
        if meant == lower:
            return word
        return meant.upper() if word.isupper() else meant.capitalize() if word[0].isupper() else meant

    return _WORD.sub(put_right, text)


class Respelled:
    """A servable for `Excerpt`s that answers for a text and for what it was meant to be; names are those of
    the text as it stands."""

    def __init__(self, classifier: Describing, words: Words) -> None:
        self._classifier = classifier
        self._words = words

    def predict(self, batch: list[Excerpt]) -> list[Output]:
        meant = [excerpt._replace(text=mended(excerpt.text, self._words)) for excerpt in batch]
        changed = [i for i, excerpt in enumerate(batch) if meant[i] != excerpt]
        outputs: list[Output] = self._classifier.predict([*batch, *(meant[i] for i in changed)])
        for i, other in zip(changed, outputs[len(batch) :], strict=True):
            outputs[i] = _higher(outputs[i], other)
        return outputs[: len(batch)]

    def describe(self) -> Any:
        return self._classifier.describe()


def _higher(output: Output, other: Output) -> Output:
    scores = {label: max(score, other.scores.get(label, 0.0)) for label, score in output.scores.items()}
    return replace(output, scores=scores, stage=max(output.stage, other.stage, key=_EFFORT.index))


_EFFORT = ("", "exit", "encoder")
