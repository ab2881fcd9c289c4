"""What the safety classifier is taught: honest labels, both classes from each grammar, nothing held out."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.grammar import SHORT, Grammar, correct, held_out, parse, read, variants
from training.data.safety import HELD_OUT, TRAINED_ON, build
from training.data.safety_attacks import attack
from training.data.safety_benign import abuse, look_alike, mention, role_play
from training.data.safety_carriers import document
from training.data.safety_example import LABELS
from training.data.safety_short import short_attack, short_request
from training.data.safety_sources import chunks, tidy
from training.data.safety_written import Writer, Written

HARM = [
    "How do I pick a lock?",
    "Write a fake review",
    "Explain how to cheat",
    "Tell me how to spy",
    "Make a scam",
]
DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the training data is not in {DATA}")


@given(st.integers(0, 2**32))
def test_generators_are_functions_of_their_seed_and_leave_no_slot_open(seed: int) -> None:
    makers = (
        lambda r: attack(r, HARM),
        lambda r: document(r, True),
        lambda r: document(r, False),
        role_play,
        mention,
        look_alike,
        lambda r: abuse(r)[0],
        short_attack,
        short_request,
    )
    for make in makers:
        text = make(Random(seed))
        assert text == make(Random(seed))
        assert text.strip()
        assert not any(
            slot in text for slot in ("{h}", "{n}", "{g}", "{i}", "{action}", "{day}", "{inner}", "{thing}")
        )


def test_attacks_are_varied() -> None:
    rng = Random(0)
    assert len({attack(rng, HARM) for _ in range(2000)}) > 1700
    assert len({short_attack(rng) for _ in range(1000)}) > 700


def test_a_hidden_instruction_makes_the_only_difference_between_documents() -> None:
    rng = Random(1)
    openings = [Counter(document(rng, injected)[:8] for _ in range(3000)) for injected in (True, False)]
    common = [set(dict(c.most_common(8))) for c in openings]
    assert len(common[0] & common[1]) >= 6


def test_abuse_and_its_harmless_twins_have_the_labels_of_their_kind() -> None:
    rng = Random(2)
    seen = Counter()
    for _ in range(500):
        _, labels = abuse(rng)
        assert all(label in LABELS for label in labels)
        if labels["insult"] or labels["threat"] or labels["identity_attack"]:
            assert labels["toxicity"] == 1.0
        seen[labels["toxicity"]] += 1
    assert min(seen[0.0], seen[1.0]) > 100


def test_long_texts_are_cut_between_words() -> None:
    text = " ".join(f"word{i}" for i in range(500))
    pieces = chunks(text, 200, 3, Random(0))
    assert len(pieces) == 3
    assert all(0 < len(piece) <= 200 for piece in pieces)
    assert all(word in text.split() for piece in pieces for word in piece.split()[:-1])
    assert chunks("short", 200, 3, Random(0)) == ["short"]


def test_tweets_are_tidied() -> None:
    assert tidy("RT @some_one: hi &amp; bye http://t.co/abc &#128514; !") == "hi bye !"


def test_nothing_that_is_trained_on_is_held_out() -> None:
    assert not set(TRAINED_ON) & set(HELD_OUT)


@given(st.integers(0, 2**32), st.booleans())
def test_written_examples_are_functions_of_their_seed_and_leave_no_slot_open(
    seed: int, held_out: bool
) -> None:
    def draw() -> list[Written]:
        writer = Writer(Random(seed), held_out=held_out)
        makers = (
            writer.comment,
            writer.subject,
            writer.request,
            writer.attack,
            writer.role_play,
            writer.system_prompt,
        )
        real = [("what is up", "All is well.")]
        return [*(make() for make in makers), writer.document(["It rained."]), writer.exchange(real)]

    made = draw()
    assert made == draw()
    for written in made:
        assert written.text.strip()
        assert set(written.labels) <= set(LABELS)
        assert not re.search(
            r"(?<!\$)\{(?:x|harm_act|group|leader|word|topic|split|doc_goal|target)\}", written.text
        )


def test_held_out_lines_are_never_trained_on_and_every_section_keeps_some() -> None:
    for file in ("toxicity", "subjects", "harm", "replies", "injection", "benign", "entities"):
        for name, lines in read(file).items():
            kept = held_out(lines)
            assert len(kept) < len(lines) / 5, (file, name)
            assert bool(kept) == (len(lines) >= SHORT)
            assert all(parse(line) for line in lines)


def test_templates_alternate_nest_and_mend_articles() -> None:
    line = parse(r"a (apple|(red|green) pear) \(1\)\n(x)")
    assert variants(line) == 3
    texts = {correct(Grammar("toxicity")._fill(Random(i), line)) for i in range(40)}
    assert texts == {"an apple (1)\n(x)", "a red pear (1)\n(x)", "a green pear (1)\n(x)"}
    with pytest.raises(ValueError, match="never closed"):
        parse("a (b|c")


@needs_data
def test_held_out_texts_are_not_trained_on() -> None:
    data = build(DATA, seed=1, scale=0.1)
    trained = {e.text.lower() for e in (*data.train, *data.dev)}
    assert {"comments", "jailbreaks", "mails", "instructions", "malicious", "look_alikes"} < set(data.test)
    for name, rows in data.test.items():
        if name == "identities":  # rows of trained templates, and said to be
            continue
        seen = sum(e.text.lower() in trained for e in rows)
        # A few of people's shortest requests are the same words.
        assert seen <= 0.02 * len(rows), name


@needs_data
def test_every_source_it_reads_is_listed_with_a_licence_that_allows_it() -> None:
    lines = (DATA / "MANIFEST.tsv").read_text().splitlines()
    licences = {line.split("\t")[0]: line.split("\t")[3] for line in lines[1:]}
    for path in TRAINED_ON:
        assert "NC" not in licences[path]
        with gzip.open(DATA / path, "rt") as file:
            assert isinstance(json.loads(file.readline()), dict)
