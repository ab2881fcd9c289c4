"""What guards see of a tool call's arguments, how long the arguments are held, and what goes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
import regex

from guardrails.build import GuardEnvironment, build_guard
from guardrails.guard import Answer, Context, Guard, Job, Step
from guardrails.json_text import GrowingJson
from guardrails.stream import Moderator
from guardrails.verdict import Action, Finding
from policies.registry import Registry
from policies.spec import PatternsSpec, SecretsSpec, ToolCallsSpec, TopicsSpec
from tests.guardrails.scripted import Rule, RuleGuard

ARGUMENTS = Context(channel="tool_arguments")
ENV = GuardEnvironment(Registry("nowhere"), b"key")
SPECS = {"patterns": PatternsSpec, "secrets": SecretsSpec, "topics": TopicsSpec, "tool_calls": ToolCallsSpec}


def guard(name: str, **settings: Any) -> Guard:
    return build_guard(SPECS[name].model_validate(settings), ENV)


def redacting(expression: str, replacement: str | None = None) -> Guard:
    pattern = {"name": "X", "regex": expression}
    return guard("patterns", patterns=[pattern], action="redact", replacement=replacement)


def blocking(expression: str) -> Guard:
    return guard("patterns", patterns=[expression], action="block")


def released(guards: list[Guard], *pieces: str) -> list[str]:
    """What goes out with each piece, the end included."""
    moderator = Moderator(guards, ARGUMENTS)
    out = []
    for index, piece in enumerate(pieces):
        assert not moderator.feed(piece, final=index == len(pieces) - 1)
        out.append(moderator.release().text)
    assert moderator.ended
    return out


def moderated(guards: list[Guard], text: str) -> str:
    whole = "".join(released(guards, text))
    assert "".join(released(guards, *text, "")) == whole, "character by character"
    return whole


EMAIL = guard("patterns", builtin=["EMAIL"], action="redact", replacement="[E]")
SSN = r"\b\d{3}-?\d{2}-?\d{4}\b"


@pytest.mark.parametrize(
    ("under_test", "arguments", "expected"),
    [
        (EMAIL, r'{"to": "ann\u0040example.com", "n": 1}', '{"to": "[E]", "n": 1}'),
        (EMAIL, r'{"ann\u0040example.com": "x"}', '{"[E]": "x"}'),
        (guard("patterns", words=["zephyr"], action="redact"), r'["\u007aephyr\u200b", "z\u0435phyr"]',
         r'["[WORD_LIST]\u200b", "[WORD_LIST]"]'),
        (guard("secrets", action="redact"), r'{"p\u0061ssword" : "Tr0ub4dor&3"}',
         r'{"p\u0061ssword" : "[ASSIGNED_SECRET]"}'),
        (redacting(SSN), '{"ssn": 123456789, "a": [123456789 ]}', '{"ssn": "[X]", "a": ["[X]" ]}'),
        (redacting(SSN), "123456789", '"[X]"'),
        (redacting("23"), '{"a": -1.23e5, "b": "1.23"}', '{"a": "[X]", "b": "1.[X]"}'),
        (redacting("rue"), '{"a": true}', '{"a": "[X]"}'),
        (redacting("b+", '"\\\n'), r'["abc", "\u0062"]', r'["a\"\\\nc", "\"\\\n"]'),
        (redacting("(?s)a.*d"), '{"x": ["ab", 12, "cd"]}', '{"x": ["[X]", "[X]", ""]}'),
        (redacting(r"\s+"), '{"a": "b c", "d": 1}', '{"a": "b[X]c", "d": 1}'),
        (redacting("\ufffd"), r'["\ud83d", "\ud83d\ude00"]', r'["[X]", "\ud83d\ude00"]'),
        (blocking("project zephyr"), r'{"q": "about \u0070roject zephyr"}', '{"q": "about '),
        (blocking("cd"), '{"a": 1, "b": "abcd"}', '{"a": 1, "b": "ab'),
        (blocking("a: b"), '{"a": "b"}', '{"'),
        (guard("topics", deny={"bets": {"phrases": ["bet", "odds"], "min_hits": 2}}),
         r'{"a": "a \u0062et", "b": "the \u006fdds"}', '{"a": "a \\u0062et", "b": "the '),
    ],
)  # fmt: skip
def test_every_guard_reads_what_the_json_says(under_test: Guard, arguments: str, expected: str) -> None:
    assert moderated([under_test], arguments) == expected


def test_findings_of_several_guards_in_one_value_leave_it_valid() -> None:
    guards = [redacting("ab+"), redacting("b+c", '"'), redacting(r"\d\d"), blocking("zzz")]
    assert json.loads(moderated(guards, r'{"v": "xa\u0062\u0062cx", "n": 123}')) == {"v": "x[X]x", "n": "[X]"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": "x" "ann@ex.org"}', '{"a": "x" "[X]"}'),
        ('{"a": "x", a: \'ann@ex.org\'}', '{"a": "x", a: \'[X]\'}'),
        ('{"a": "line\nann\\u0040ex.org"}', '{"a": "line\n[X]"}'),
        (r'{"a": "b\x61nn\x40ex.org"}', r'{"a": "[X]"}'),
        ('{"a": "ann@ex.org', '{"a": "[X]'),
        ('{"a": 12 34}', '{"a": 12 34}'),
        ("ann@ex.org said so", "[X] said so"),
        ('{"a": 1}{"b": "ann\\u0040ex.org"}', '{"a": 1}{"b": "[X]"}'),
        (r'{"a": "\u00', r'{"a": "\u00'),
    ],
)
def test_what_is_no_json_is_examined_as_it_stands_and_decoded(arguments: str, expected: str) -> None:
    assert moderated([redacting(r"\w+@\w+\.\w+")], arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("123 45 6789 is it", "[X] is it"),
        ('{"ssn": 123-45-6789}', '{"ssn": [X]}'),
        ('{"ssn": 123 45 6789}', '{"ssn": [X]}'),
        ('"123 45 6789" is it', '"[X]" is it'),
        ('{"ssn": 123\\u002d45-6789', '{"ssn": [X]'),
    ],
)
def test_a_number_that_was_none_is_part_of_what_follows(arguments: str, expected: str) -> None:
    assert moderated([redacting(r"\b\d{3}[ -]\d{2}[ -]\d{4}\b")], arguments) == expected


def test_the_raw_text_counts_where_it_says_more() -> None:
    """What only the text as it stands shows is acted on from where the text is no JSON."""
    paths = blocking(r"C:\\temp")
    assert moderated([paths], '{"a": "x", "b": "C:\\temp"}') == '{"a": "x", "b": "C:\\temp"}', "a tab"
    assert moderated([paths], "{'a': \"C:\\temp\"}") == "{'a': \""
    assert moderated([blocking('1, x: "y"')], '{"a": 1, x: "y"}') == '{"a": 1, '


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("{}", None), ('{"a": [1, -0.5e+3, true, null, {}], "b": "\\u00e9\\n"} \n', None), ("", None),
        ("01", 0), ("-", 0), ("1.", 0), ("1e", 0), ("tru", 0), ("[1.5.2]", 1), ("[nul]", 1), ("NaN", 0),
        ("[1,]", 3), ('{"a",', 4), ('{"a": }', 6), ("[}", 1), ("{]", 1), ("{1: 2}", 1), ("[1}", 2),
        ("[] ]", 3), ("[", None),
        ('["\x01', 2), ('["\\x', 2), ('["\\u12g', 2), ("[1 2]", 1), ("\ufeff{}", 0), ("[1:2]", 1), (",", 0),
    ],
)  # fmt: skip
def test_where_a_text_stops_being_json(text: str, broken: int | None) -> None:
    reader = GrowingJson()
    reader.grow(text, True)
    assert reader.broken == broken


def test_prose_in_strings_keeps_streaming_and_numbers_wait_for_their_end() -> None:
    guards = [redacting(r"\bbad\b"), redacting(r"\d{9}")]
    pieces = ['{"te', 'xt": "so', "me b", "ad", 'ly", "n', '": 12', "345", " ", "}", ""]
    out = ['{"te', 'xt": "so', "me ", "", 'badly", "n', '": ', "", "", "12345 }", ""]
    assert released(guards, *pieces) == out


def test_escapes_wait_for_their_end_and_pairs_for_their_other_half() -> None:
    pieces = [r'["\u00', r"41\ud8", r"3d", r"\u", r"de00", r"\ud83d", r"\n", "x", '"]']
    assert released([blocking("zzz")], *pieces) == [
        '["', r"\u0041", "", "", r"\ud83d\ude00", "", r"\ud83d\n", "x", '"]'
    ]  # fmt: skip


def test_a_guard_that_reads_raw_texts_is_given_them() -> None:
    strict = guard("tool_calls", arguments=[{"guard": "patterns", "patterns": [r"\{\}"], "action": "block"}])
    assert released([strict], '{"a": ', "{}}") == ["", '{"a": ']


class _Judge:
    """A guard with a job about each piece that arrives, which finds `word` in it."""

    name, scope, action, on_error, deadline = "judge", "segment", Action.REDACT, Action.BLOCK, 1.0
    changes_text, servables = True, frozenset({"s"})

    def __init__(self, word: str) -> None:
        self.word = word

    def examine(self, context: Context) -> _Examination:
        return _Examination(self)


class _Examination:
    def __init__(self, judge: _Judge) -> None:
        self.judge, self.asked = judge, 0

    def advance(self, text: str, final: bool) -> Step:
        start, self.asked = self.asked, len(text)
        jobs = [Job(start, len(text), "s", (start, text[start:]), self.read)] if len(text) > start else []
        return Step(len(text), jobs=jobs)

    def read(self, piece: Any) -> Answer:
        start, text = piece
        found = [
            Finding(start + match.start(), start + match.end(), "judge", "X", 1.0, Action.REDACT)
            for match in regex.finditer(self.judge.word, text)
        ]
        return Answer(found)


def test_a_job_about_a_number_waits_until_the_number_is_complete() -> None:
    moderator = Moderator([_Judge("34")], ARGUMENTS)
    (first,) = moderator.feed('{"a": "b", "n": ')
    assert not moderator.feed("1234")
    assert not moderator.feed("567")
    jobs = moderator.feed("8, ")
    assert [pending.job.payload[1] for pending in jobs] == ["1234", "567", "8\n"]
    for pending in [first, *jobs]:
        moderator.resolve(pending, pending.job.payload)
    assert moderator.release().text == '{"a": "b", "n": "[X]", '


def test_a_failure_withholds_from_where_it_failed() -> None:
    failing = RuleGuard("g", [Rule("zzz", Action.BLOCK)], scope="segment", fail_on="secret", longest=8)
    moderator = Moderator([failing], ARGUMENTS)
    for pending in moderator.feed('{"a": "hello", "b": "secret"}', final=True):
        text = pending.job.payload[1]
        moderator.resolve(pending, ValueError() if "secret" in text else failing.predict(pending.job.payload))
    release = moderator.release()
    assert release.ended and release.withheld and "secret" not in release.text
