"""Names in text: tags, splits, and synthetic sentences whose spans are where they say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.entities import (
    DOUBT,
    ENTITY_TYPES,
    TAGS,
    Marked,
    bio,
    doubted,
    lowered,
    presidio,
    split_by_template,
    value_pool,
    without_entities,
    wnut,
)
from training.data.entities_synthetic import TYPES, Chat, person


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_bio_marks_beginnings_insides_and_special_tokens() -> None:
    spans = (("PERSON", 3, 13), ("LOCATION", 17, 22))
    offsets = [(0, 0), (0, 2), (3, 7), (8, 11), (11, 13), (14, 16), (17, 22), (0, 0)]
    names = [TAGS[tag] if tag >= 0 else None for tag in bio(spans, offsets)]
    assert names == [None, "O", "B-PERSON", "I-PERSON", "I-PERSON", "O", "B-LOCATION", None]


POOL = {"PERSON": ["Zoë Ångström"], "LOCATION": [], "ORGANIZATION": ["ACME B.V."]}


@given(st.integers(0, 2**32), st.booleans())
def test_synthetic_spans_hold_names_and_do_not_overlap(seed: int, held_out: bool) -> None:
    text, spans = Chat(POOL, held_out=held_out).draw(Random(seed))
    last = 0
    for kind, start, end in spans:
        assert kind in ENTITY_TYPES
        assert last <= start < end <= len(text)
        assert text[start:end].strip() == text[start:end]
        last = end
    assert not any(mark in text for mark in "\ue000\ue001")


def test_synthetic_texts_have_every_type_both_cases_and_often_no_name() -> None:
    rng, made = Random(0), Chat({})
    drawn = [made.draw(rng) for _ in range(600)]
    assert {kind for _, spans in drawn for kind, *_ in spans} == set(TYPES.values()) == set(ENTITY_TYPES)
    assert 0.2 < sum(text == text.lower() for text, _ in drawn) / 600 < 0.7
    assert 0.08 < sum(not spans for _, spans in drawn) / 600 < 0.4
    assert len({person(rng) for _ in range(500)}) > 450


def test_what_may_be_a_date_or_a_nationality_teaches_nothing_where_it_is_not_marked() -> None:
    marked = doubted(Marked("Ann, a Polish nurse, left on 3 May 2024", (("PERSON", 0, 3),), "wnut17"))
    assert [(k, marked.text[a:b]) for k, a, b in marked.spans if k == DOUBT] == [
        (DOUBT, "Polish"),
        (DOUBT, "3 May 2024"),
    ]
    offsets = [(0, 3), (5, 6), (7, 13), (21, 25), (29, 30), (31, 34)]
    assert bio(marked.spans, offsets) == [TAGS.index("B-PERSON"), 0, -100, 0, -100, -100]


def test_wnut_offsets_follow_the_joined_text(tmp_path: Path) -> None:
    row = {
        "tokens": ["So", "Anna", "Lee", "left", "Oslo", "!", "The", "Hobbit"],
        "tags": ["O", "B-person", "I-person", "O", "B-location", "O", "B-creative-work", "I-creative-work"],
    }
    (marked,) = wnut(write(tmp_path / "w.jsonl.gz", [row]))
    assert marked.text == "So Anna Lee left Oslo! The Hobbit"
    assert [(k, marked.text[a:b]) for k, a, b in marked.spans] == [
        ("PERSON", "Anna Lee"),
        ("LOCATION", "Oslo"),
    ]


def test_presidio_rows_tell_addresses_from_places(tmp_path: Path) -> None:
    text = "Ann, 12 Elm Street, Oslo; mail a@b.co"
    spans = [
        {"entity_type": "LOCATION", "start_position": 20, "end_position": 24},
        {"entity_type": "ADDRESS", "start_position": 5, "end_position": 18},
        {"entity_type": "PERSON", "start_position": 0, "end_position": 3},
        {"entity_type": "EMAIL_ADDRESS", "start_position": 31, "end_position": 37},
    ]
    unmarked = {"full_text": "at {street_name}", "spans": [], "template_id": 2}
    rows = [{"full_text": text, "spans": spans, "template_id": 1}, unmarked]
    ((template, marked),) = presidio(write(tmp_path / "p.jsonl.gz", rows))
    assert template == 1
    found = [(k, text[a:b]) for k, a, b in marked.spans]
    assert found == [("PERSON", "Ann"), ("ADDRESS", "12 Elm Street"), ("LOCATION", "Oslo")]


def test_no_template_is_on_both_sides() -> None:
    rows = [(n % 10, Marked(f"{n % 10}", (), "x")) for n in range(50)]
    train, test = split_by_template(rows, 0.3, seed=1)
    assert len(train) == 35
    assert not {m.text for m in train} & {m.text for m in test}


def test_lower_case_keeps_offsets_or_leaves_the_text() -> None:
    assert lowered(Marked("Hi ANN", (("PERSON", 3, 6),), "x")).text == "hi ann"
    odd = Marked("İ Ann", (("PERSON", 2, 5),), "x")
    assert lowered(odd) == odd


def test_values_are_pooled_by_type() -> None:
    marked = Marked("Ann Li in Oslo\nCity", (("PERSON", 0, 6), ("LOCATION", 10, 19)), "x")
    assert value_pool([marked]) == {kind: [] for kind in ENTITY_TYPES} | {"PERSON": ["Ann Li"]}


@pytest.mark.parametrize(
    ("sentence", "nameless"),
    [
        ("The cat sat on the mat.", True),
        ("The cat of Ann sat down.", False),
        ("Ann sat on the mat.", False),
        ("Hello there you", False),
    ],
)
def test_sentences_without_capitals_hold_no_names(sentence: str, nameless: bool) -> None:
    assert bool(list(without_entities([sentence]))) is nameless
