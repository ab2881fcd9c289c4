"""Texts with names, addresses and dates marked: readers, splits and BIO tags.

WNUT-17 (Derczynski et al. 2017) is tweets and forum posts with emerging entities. The Presidio research set
repeats sentence templates, so it is split by template, never by row. Neither marks all that the tags know:
what may be a date or a nationality there teaches nothing (`DOUBT`).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from training.data.entities_synthetic import Chat, nationalities

ENTITY_TYPES = ("PERSON", "LOCATION", "ADDRESS", "ORGANIZATION", "DATE_TIME", "NRP")
DOUBT = "?"
"""The type of a span that may or may not be one of these: the loss leaves its tokens out."""
TAGS = ("O", *(f"{prefix}-{kind}" for kind in ENTITY_TYPES for prefix in "BI"))
_WNUT = {"person": "PERSON", "location": "LOCATION", "corporation": "ORGANIZATION", "group": "ORGANIZATION"}
_PRESIDIO = {
    "PERSON": "PERSON",
    "LOCATION": "LOCATION",
    "ADDRESS": "ADDRESS",
    "ORGANIZATION": "ORGANIZATION",
    "DATE_TIME": "DATE_TIME",
}

Spans = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Marked:
    """A text and its `(entity_type, start, end)` spans, in code points, end exclusive, not overlapping."""

    text: str
    spans: Spans
    source: str


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a gzipped JSON lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def wnut(path: Path) -> list[Marked]:
    """WNUT-17 rows, joined with blanks (none before closing punctuation)."""
    marked = []
    for row in read_rows(path):
        text = ""
        spans: list[tuple[str, int, int]] = []
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            glue = "" if not text or word in ".,!?;:)'%" or word.startswith("'") else " "
            start = len(text) + len(glue)
            text += glue + word
            kind = _WNUT.get(tag[2:])
            if kind is None:
                continue
            if tag[0] == "I" and spans and spans[-1][0] == kind:
                spans[-1] = (kind, spans[-1][1], len(text))
            else:
                spans.append((kind, start, len(text)))
        marked.append(Marked(text, tuple(spans), "wnut17"))
    return marked


def presidio(path: Path) -> list[tuple[int, Marked]]:
    """Rows of the Presidio research set with their template's number.

    Rows whose template has a slot that is not marked (single braces in the source) are left out.
    """
    rows = []
    for row in read_rows(path):
        text = row["full_text"]
        spans = sorted(
            (_PRESIDIO[s["entity_type"]], s["start_position"], s["end_position"])
            for s in row["spans"]
            if s["entity_type"] in _PRESIDIO and s["end_position"] > s["start_position"]
        )
        if "{street_name}" in text:
            continue
        rows.append((row["template_id"], Marked(text, _merge(text, spans), "presidio")))
    return rows


def _merge(text: str, spans: Iterable[tuple[str, int, int]]) -> Spans:
    """Neighbouring spans of one kind that only blanks or commas part become one (an address in pieces)."""
    merged: list[tuple[str, int, int]] = []
    for kind, start, end in sorted(spans, key=lambda s: s[1]):
        if merged and start < merged[-1][2]:
            continue
        if (
            merged
            and merged[-1][0] == kind
            and kind in ("LOCATION", "ADDRESS")
            and not text[merged[-1][2] : start].strip(" ,")
        ):
            merged[-1] = (kind, merged[-1][1], end)
        else:
            merged.append((kind, start, end))
    return tuple(merged)


def split_by_template(
    rows: Sequence[tuple[int, Marked]], held_out: float, seed: int
) -> tuple[list[Marked], list[Marked]]:
    """Rows of the templates that are trained on, and of those that are not."""
    templates = sorted({template for template, _ in rows})
    Random(seed).shuffle(templates)
    test = set(templates[: round(held_out * len(templates))])
    return [m for t, m in rows if t not in test], [m for t, m in rows if t in test]


def lowered(marked: Marked) -> Marked:
    """The same text in lower case, where that keeps the offsets."""
    text = marked.text.lower()
    return Marked(text, marked.spans, marked.source) if len(text) == len(marked.text) else marked


def value_pool(marked: Iterable[Marked]) -> dict[str, list[str]]:
    """Values per entity type, for the synthetic sentences (short ones only, on one line)."""
    pool: dict[str, set[str]] = {kind: set() for kind in ENTITY_TYPES}
    for m in marked:
        for kind, start, end in m.spans:
            value = m.text[start:end]
            if 2 < len(value) < 40 and "\n" not in value:
                pool[kind].add(value)
    return {kind: sorted(values) for kind, values in pool.items()}


def without_entities(sentences: Iterable[str]) -> Iterator[Marked]:
    """Sentences that hold no name, as far as capital letters tell: none but at the start, and "I"."""
    for sentence in sentences:
        words = sentence.split()
        if 4 <= len(words) <= 60 and all(
            w[0].islower() or w in ("I", "I'm", "I've", "I'd", "I'll") or not w[0].isalpha()
            for w in words[1:]
        ):
            first = words[0].strip(",.:;!?").lower()
            if first in _OPENING_WORDS:
                yield Marked(sentence, (), "no_entities")


_OPENING_WORDS = frozenset(
    "the a an i you he she it we they this that these those what which who how why when where if in "
    "on at for from to and but or so yes no "
    "can could would should will do does did is are was were have has there here my your his her our "
    "their some many most all each please "
    "write create explain describe imagine give tell find calculate convert rewrite name list "
    "generate after before once as with".split()
)


def bio(spans: Spans, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """A tag per token from character spans; special tokens (empty offsets) and doubts get -100, which the
    loss ignores."""
    tags = []
    for start, end in offsets:
        if start == end:
            tags.append(-100)
            continue
        hit = next((s for s in spans if start < s[2] and s[1] < end), None)
        if hit is not None and hit[0] == DOUBT:
            tags.append(-100)
            continue
        # The first token of a span is the one that covers its first character.
        tags.append(0 if hit is None else TAGS.index(f"{'B' if start <= hit[1] else 'I'}-{hit[0]}"))
    return tags


_MONTH = r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\b"
_MAYBE = re.compile(
    r"\b\d{1,4}(?:[/.:-]\d{1,4})+\b|\b(?:19|20)\d\d\b|\b\d{1,2}(?::\d\d)? ?[ap]m\b|"
    rf"(?:\b\d{{1,2}}(?:st|nd|rd|th)?(?: of)? )?{_MONTH}(?:\.? \d{{1,4}}(?:st|nd|rd|th)?)?",
    re.I,
)


def doubted(marked: Marked) -> Marked:
    """The text with what may be a date or a nationality, and is not marked as anything, as doubts."""
    maybe = [(m.start(), m.end()) for m in (*_MAYBE.finditer(marked.text), *nationalities(marked.text))]
    free = [(DOUBT, a, b) for a, b in sorted(maybe) if not any(a < s[2] and s[1] < b for s in marked.spans)]
    return Marked(marked.text, (*marked.spans, *free), marked.source)


def build_entities(root: Path, seed: int, synthetic: int, prose: Sequence[str]) -> dict[str, list[Marked]]:
    """`train`, `dev` (for calibration), and held out: `test_presidio` and `test_written` (templates),
    `test_wnut17`."""
    rng = Random(seed)
    train, test = split_by_template(presidio(root / "pii/presidio_generated_large.jsonl.gz"), 0.25, seed)
    tweets = wnut(root / "pii/wnut17_train.jsonl.gz")
    rng.shuffle(tweets)
    dev, tweets = tweets[:300], tweets[300:]
    pool = value_pool(train)
    made = Chat(pool)
    chats = [_written(made, rng) for _ in range(synthetic)]
    kept = Chat({}, held_out=True)
    nothing = list(without_entities(prose))
    rng.shuffle(nothing)
    rows = [
        *train,
        *(lowered(m) for m in train if rng.random() < 0.6),
        *tweets,
        *(lowered(m) for m in tweets if rng.random() < 0.5),
        *nothing[: synthetic // 3],
    ]
    return {
        "train": [*map(doubted, rows), *chats],
        "dev": [*map(doubted, dev), *(_written(made, rng) for _ in range(300))],
        "test_presidio": test,
        "test_wnut17": wnut(root / "pii/wnut17_dev.jsonl.gz"),
        "test_written": [_written(kept, rng) for _ in range(400)],
    }


def _written(made: Chat, rng: Random) -> Marked:
    text, spans = made.draw(rng)
    return Marked(text, tuple(spans), "entities_written")
