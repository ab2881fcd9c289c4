"""The stream contract on tool calls' arguments: guards read what the JSON says, and it stays JSON.

G(x) comes from a record of how the text was spelled (`tests.guardrails.json_texts`), not from reading it.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

import regex
from hypothesis import assume, given
from hypothesis import strategies as st

from guardrails.apply_json import apply_json
from guardrails.guard import Context
from guardrails.json_text import GrowingJson
from guardrails.stream import Moderator
from guardrails.verdict import Action
from tests.guardrails.json_texts import NUMBERS, Number, json_data, spell
from tests.guardrails.reference import chunks, found, released_in_any_order
from tests.guardrails.scripted import Rule, RuleGuard, cases
from tests.guardrails.test_stream_contract import PIECES, guard_sets

ARGUMENTS = Context(channel="tool_arguments")
texts = st.lists(st.sampled_from([*PIECES, '"', "\\", "/", "\\u0041"]), max_size=5).map("".join)
# With lone surrogates, which are no pairs.
odd = st.text(st.characters() | st.just("\ud83d"), max_size=6)
any_text = texts | odd.filter(lambda text: not regex.search(r"[\ud800-\udbff][\udc00-\udfff]", text))
SEEDS = st.integers(0, 2**32)


def shape(data: Any) -> Any:
    """What moderation must not change: where strings are, and where numbers are or were."""
    if isinstance(data, list):
        return [shape(item) for item in data]
    if isinstance(data, Members):
        return [("name", shape(value)) for _, value in data.items]
    return "value"


class Members:
    """An object of which no member is lost."""

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        self.items = items


def parsed(raw: str) -> Any:
    return json.loads(raw, object_pairs_hook=Members, parse_int=str, parse_float=str)


@cases(1_000)
@given(st.data(), json_data(any_text), SEEDS, guard_sets())
def test_arguments_are_examined_decoded_and_released_as_valid_json(
    data: st.DataObject, arguments: Any, seed: int, guards: list[RuleGuard]
) -> None:
    for guard in guards:
        if guard.scope == "pattern":
            guard.fail_on = ""  # as in tests/guardrails/test_stream_contract.py
    text = spell(arguments, Random(seed))
    expected = text.moderated(*found(guards, text.view))
    moderator = Moderator(guards, ARGUMENTS)
    states = released_in_any_order(data, moderator, chunks(data, text.raw), guards)
    assert all(expected.startswith(state) for state in states)
    assert states[-1] == expected
    if not moderator.verdict.action.withholds:
        assert shape(parsed(expected)) == shape(parsed(text.raw))
        assert apply_json(text.raw, moderator.verdict) == expected


numbers = st.integers().map(lambda number: Number(str(number)))


@cases(500)
@given(st.data(), json_data(st.just("a"), numbers), SEEDS, guard_sets([r"\d\d", r"[13579]+", r"\b\d"]))
def test_numbers_are_replaced_whole_however_they_are_cut_and_asked_about(
    data: st.DataObject, arguments: Any, seed: int, guards: list[RuleGuard]
) -> None:
    for guard in guards:
        guard.fail_on = ""
    text = spell(arguments, Random(seed))
    expected = text.moderated(*found(guards, text.view))
    states = released_in_any_order(data, Moderator(guards, ARGUMENTS), chunks(data, text.raw, 40), guards)
    assert all(expected.startswith(state) for state in states)
    assert states[-1] == expected


def lines(data: Any) -> str:
    if isinstance(data, Members):
        return "".join(f"{name}: {lines(value)}" for name, value in data.items)
    if isinstance(data, list):
        return "".join(map(lines, data))
    return f"{data if isinstance(data, str) else json.dumps(data)}\n"


@cases(300)
@given(st.data(), json_data(any_text), SEEDS)
def test_the_view_grows_with_the_text_and_says_what_a_parser_says(
    data: st.DataObject, arguments: Any, seed: int
) -> None:
    raw = spell(arguments, Random(seed)).raw
    reader, at = GrowingJson(), 0
    for piece in chunks(data, raw):
        before, at = reader.view, at + len(piece)
        reader.grow(raw[:at], final=False)
        assert reader.view.startswith(before)
    reader.grow(raw, final=True)
    assert reader.broken is None
    assert _without_surrogates(reader.view) == _without_surrogates(lines(parsed(raw)))


def _without_surrogates(text: str) -> str:
    return regex.sub(r"[\ud800-\udfff]", "\ufffd", text)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """JSON that was cut, or into which something else got."""
    raw = spell(draw(json_data(texts)), Random(draw(SEEDS))).raw
    at = draw(st.integers(0, len(raw)))
    junk = ["", '"', "\\", "\\x41", "\\u00", "\\ud83d", "\n", "{", "}", "]", ",", ":", "'", "bad", *NUMBERS]
    kind = draw(st.sampled_from(["cut", "insert", "replace", "plain"]))
    if kind == "cut":
        return raw[:at]
    if kind == "plain":
        return draw(st.text(st.sampled_from('{}[]:,"\\ \nu0061baderx1'), max_size=20))
    return raw[:at] + draw(st.sampled_from(junk)) + raw[at + (kind == "replace") :]


def readings(raw: str) -> list[str]:
    """The text as it stands, and as a parser reads it that minds nothing."""
    decoded = regex.sub(r"(?s)\\(?:u(....)|(.))", lambda m: chr(int(m[1], 16)) if m[1] else m[2], _sane(raw))
    return [raw, decoded]


def _sane(raw: str) -> str:
    """Without what isn't an escape after all."""
    return regex.sub(r"\\u(?![0-9a-fA-F]{4})", "", raw)


@cases(800)
@given(st.data(), damaged(), guard_sets())
def test_however_broken_arguments_are_cut_the_same_is_released(
    data: st.DataObject, raw: str, guards: list[RuleGuard]
) -> None:
    for guard in guards:
        if guard.scope == "pattern":
            guard.fail_on = ""
    whole = Moderator(guards, ARGUMENTS)
    expected = released_in_any_order(data, whole, [raw], guards)[-1]
    moderator = Moderator(guards, ARGUMENTS)
    states = released_in_any_order(data, moderator, chunks(data, raw), guards)
    assert all(expected.startswith(state) for state in states)
    assert states[-1] == expected
    if not whole.verdict.action.withholds:
        assert moderator.verdict == whole.verdict


@cases(500)
@given(st.data(), damaged(), st.sampled_from([Action.BLOCK, Action.REDACT]), st.sampled_from(["bad", "ab"]))
def test_broken_arguments_are_examined_as_they_stand_and_decoded(
    data: st.DataObject, raw: str, action: Action, word: str
) -> None:
    assume("\\b" not in raw)  # a backspace to every parser, and no letter of a word
    guards = [RuleGuard("word", [Rule(word, action, "#")])]
    moderator = Moderator(guards, ARGUMENTS)
    released = released_in_any_order(data, moderator, chunks(data, raw), guards)[-1]
    assert all(word not in reading for reading in readings(released))
