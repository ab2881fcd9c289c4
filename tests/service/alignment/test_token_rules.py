"""Which tokens a constraint touches, against trying every token on the text."""

from __future__ import annotations

import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.constraints import Constraint, from_wire, to_wire
from service.alignment.token_rules import Following, Rules, Vocabulary

PIECES = [
    "a",
    "b",
    "s",
    " ",
    ".",
    "as",
    "ss",
    "s ",
    " a",
    "ass",
    "Ass",
    ".as",
    "s.a",
    "b a",
    "sb",
    "ab b",
    "S",
]
END = len(PIECES)
TOKENS = st.lists(st.integers(0, END - 1), max_size=8)
PHRASES = ["ass", "a b", "b", "s.a", "sb as"]


def vocabulary() -> Vocabulary:
    def encode(text: str) -> list[int]:
        return [PIECES.index(character) for character in text]

    return Vocabulary([*(piece.encode() for piece in PIECES), b""], encode)


def ends(phrase: str, text: str) -> list[int]:
    """Where the phrase stands in `text`, as a whole word, by an expression of its own."""
    found = re.finditer(rf"(?<![a-z])(?=({re.escape(phrase)})(?![a-z]))", text.lower())
    return [match.start() + len(phrase) for match in found]


def adjustments(constraint: Constraint, tokens: list[int], limit: int = 1000) -> dict[int, float]:
    following = Following(Rules([constraint], vocabulary()), [END], limit)
    following.read(tokens)
    state = following.state
    found = dict(zip(state.tokens.tolist(), state.amounts.tolist(), strict=True))
    for adjustment in following.adjustments():
        for token in adjustment.tokens.tolist():
            found[token] = found.get(token, 0.0) + adjustment.amount
    return found


@given(tokens=TOKENS, phrase=st.sampled_from(PHRASES))
def test_a_ban_forbids_exactly_the_tokens_that_complete_a_phrase(tokens: list[int], phrase: str) -> None:
    text = "".join(PIECES[token] for token in tokens)
    expected = {t for t in range(END) if any(end > len(text) for end in ends(phrase, text + PIECES[t]))}
    assert adjustments(Constraint(ban=(phrase,)), tokens) == dict.fromkeys(expected, -math.inf)


@given(tokens=TOKENS, cut=st.integers(0, 8))
def test_a_reply_may_be_read_in_parts(tokens: list[int], cut: int) -> None:
    rules = Rules([Constraint(ban=("ass", "a b"))], vocabulary())
    parts, whole = Following(rules, [END], 99), Following(rules, [END], 99)
    parts.read(tokens[:cut])
    parts.read(tokens)
    whole.read(tokens)
    assert parts.state is whole.state


def test_a_bias_decays_by_its_half_life() -> None:
    rule = Constraint(phrases=("b",), bias=-4, half_life=2, whole_words=False)
    spoken = PIECES.index(".")
    amounts = [adjustments(rule, [spoken] * said)[PIECES.index("b")] for said in (0, 2, 4)]
    assert amounts == [-4, -2, -1]


def test_states_are_forgotten_when_there_are_too_many_and_replies_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.alignment.token_rules._KEPT_STEPS", 3)
    rules = Rules([Constraint(ban=("ass", "a b")), Constraint(require=("b",), bias=-1)], vocabulary())
    chance = random.Random(0)
    for _ in range(20):
        spoken = [chance.randrange(END) for _ in range(30)]
        following, fresh = Following(rules, [END], 99), Rules([Constraint(ban=("ass", "a b"))], vocabulary())
        alone = Following(fresh, [END], 99)
        for said in range(1, len(spoken) + 1):
            following.read(spoken[:said])
            alone.read(spoken[:said])
            assert following.state.tokens.tolist() == alone.state.tokens.tolist()


def test_what_is_required_must_be_said_before_the_end() -> None:
    rule = Constraint(require=("ass", "b"))
    assert adjustments(rule, []) == {END: -math.inf}
    assert adjustments(rule, [PIECES.index("ass")]) == {END: -math.inf}
    assert adjustments(rule, [PIECES.index("ass"), PIECES.index(" "), PIECES.index("b")]) == {}
    assert adjustments(Constraint(require=("b",), bias=-3), []) == {END: -3}


@pytest.mark.parametrize("seed", range(20))
def test_what_is_required_is_said_when_the_tokens_run_out(seed: int) -> None:
    chance = random.Random(seed)
    limit = chance.randint(7, 20)
    following = Following(Rules([Constraint(require=("ass", "b"))], vocabulary()), [END], limit)
    tokens: list[int] = []
    while len(tokens) < limit:
        due = following.forced()
        tokens.append(chance.randrange(END) if due is None else due)
        following.read(tokens)
    text = "".join(PIECES[token] for token in tokens)
    assert ends("ass", text) and ends("b", text)


def test_rules_survive_the_wire() -> None:
    rules = (
        Constraint(ban=("Äpfel", "b")),
        Constraint(phrases=("x",), bias=-2.5, half_life=10, category="profanity", whole_words=False),
    )
    assert from_wire(to_wire(rules)) == rules


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "exactly one of"),
        ({"ban": ["a"], "require": ["b"]}, "exactly one of"),
        ({"phrases": ["a"]}, "needs 'bias'"),
        ({"ban": ["a"], "bias": -1}, "negative 'bias'"),
        ({"ban": ["a"], "half_life": 5}, "half_life"),
        ({"require": ["a"], "bias": 1}, "negative"),
        ({"ban": [" "]}, "pattern"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Constraint.model_validate(fields)
