"""What simulated callers say and when: drawn lengths are those of the figures, plans go where they should."""

from __future__ import annotations

import json
import random

import pytest

from loadtests import prose, shapes
from loadtests.lengths import FIGURES, LEVELS, Lengths, Quantiles
from loadtests.prompts import Conversations
from loadtests.shapes import Plan


def test_drawn_lengths_have_the_quantiles_of_the_figures() -> None:
    rng = random.Random(1)
    sample = [1 + round(rng.lognormvariate(2, 0.6)) for _ in range(20_000)]
    known = Quantiles.of(sample)
    again = Quantiles.of([known.draw(rng) for _ in range(20_000)])
    for level, was, drawn in zip(LEVELS[:-1], known.values, again.values, strict=False):
        assert abs(drawn - was) <= max(1, 0.05 * was), level


def test_the_figures_say_where_they_are_from_and_hold_no_text() -> None:
    kept = json.loads(FIGURES.read_text())
    assert "self_dialogue_corpus" in kept.pop("source")
    assert kept["quantiles_per_cent"] == list(LEVELS)
    assert kept["turns"] > 500_000
    numbers = [value for row in kept.values() for value in (row if isinstance(row, list) else [row])]
    assert all(isinstance(value, int | float) for value in numbers)
    lengths = Lengths.load()
    assert lengths.words.values == tuple(sorted(lengths.words.values))


def test_a_dialogue_grows_turn_by_turn_and_begins_anew() -> None:
    talk = Conversations("a")
    before = [message.copy() for message in talk.messages()]
    assert [message["role"] for message in before] == ["user"]
    begun = 1
    for _ in range(60):
        messages = talk.messages()
        assert messages[-1]["role"] == "user"
        if len(messages) == 1:
            begun += 1
        else:
            assert messages[:-2] == before
            assert [m["role"] for m in messages[-3:]] == ["user", "assistant", "user"]
        before = [message.copy() for message in messages]
    assert begun > 1


def test_callers_say_the_same_again_in_another_run_and_differ_from_one_another() -> None:
    assert Conversations("a").messages() == Conversations("a").messages()
    assert Conversations("a").messages() != Conversations("b").messages()


def test_what_they_say_has_the_length_that_was_drawn() -> None:
    rng = random.Random(1)
    for words in (*range(1, 60), 400):
        said = prose.text(rng, words)
        assert len(said.split()) == words
        assert said[0].isupper() and said.endswith(".") and said.count(".") == 1


def test_ramp_spike_steps_and_soak() -> None:
    ramp = shapes.ramp(11, over=10, hold=5)
    assert [ramp.users(at) for at in (0, 5, 10, 14.9, 15)] == [1, 6, 11, 11, None]
    spike = shapes.spike(2, 20, before=5, during=5, after=5)
    assert [spike.users(at) for at in (0, 4.9, 5, 9.9, 10, 14.9, 15)] == [2, 2, 20, 20, 2, 2, None]
    steps = shapes.steps((1, 4, 16), seconds=10)
    assert [steps.users(at) for at in (0, 9.9, 10, 19.9, 20, 29.9, 30)] == [1, 1, 4, 4, 16, 16, None]
    assert shapes.soak(3, seconds=60).users(59) == 3
    assert Plan.parse(str(spike)) == spike


@pytest.mark.parametrize("text", ["", "0:1", "1:1,2:1", "0:1,5", "0:1,9:2,3:4", "0:1,5:-1", "a:b,c:d"])
def test_a_plan_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="plan"):
        Plan.parse(text)
