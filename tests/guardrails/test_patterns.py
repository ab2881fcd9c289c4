"""The patterns guard: what it finds, in whichever form it is written, and that prose flows past it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.builtin_patterns import BUILTINS, luhn
from guardrails.checks import patterns
from guardrails.guard import Context
from guardrails.stream import Moderator
from guardrails.verdict import Action, Finding
from policies.guards import GuardBase
from policies.spec import Pattern, PatternsSpec

PROSE = """\
It's a quiet morning in the village, and the baker (who is always the first) opens her shop. "Come in," she
says - "there's bread, cake and coffee." Nobody hurries; why should they? In 1998 some 12 houses stood here.

Today there are 230 of them... Most have a garden, some even two! The road to the north, built 40 years ago,
is 3.5 metres wide: enough for one cart, not for two. Well-known guests have come, e.g. a poet and Mr. Jones.
"""


class Environment:
    """What the guard needs of a `GuardEnvironment`."""

    hash_key = b"k" * 32

    def on_error(self, spec: GuardBase) -> Action:
        return Action[(spec.on_error or "block").upper()]


ENV: Any = Environment()


def guard(**settings: Any) -> patterns.PatternsGuard:
    return patterns.build(PatternsSpec(**settings), ENV)


def find(text: str, *cuts: int, **settings: Any) -> list[Finding]:
    examination, findings, settled = guard(**settings).examine(Context()), [], 0
    for end in [*cuts, None]:
        step = examination.advance(text if end is None else text[:end], final=end is None)
        assert all(finding.start >= settled for finding in step.findings)
        findings += step.findings
        assert step.settled >= settled
        settled = step.settled
    assert settled == len(text)
    return sorted(findings)


def spans(text: str, **settings: Any) -> list[str]:
    return [text[f.start : f.end] for f in find(text, **settings)]


def moderated(text: str, **settings: Any) -> str:
    moderator = Moderator([guard(**settings)], Context())
    moderator.feed(text, final=True)
    return moderator.release().text


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("EMAIL_ADDRESS", "Ask jo.doe+x@mail.example.co.uk. Now", ["jo.doe+x@mail.example.co.uk"]),
        ("EMAIL_ADDRESS", "a@b, @home, user@host, 3@4.5, x@y..z, é@münchen.de", ["é@münchen.de"]),
        ("EMAIL_ADDRESS", "<one@x.org>,two@x.org;+three@x.org", ["one@x.org", "two@x.org", "three@x.org"]),
        ("US_SSN", "SSN 123-45-6789, or 123 45 6789.", ["123-45-6789", "123 45 6789"]),
        ("US_SSN", "000-12-3456 666-12-3456 912-12-3456 123-00-4567 123-45-0000", []),
        ("US_SSN", "1123-45-6789 123-45-67890", []),
        ("US_SSN", "123-45 6789, 5-123-45-6789, 123-45-6789-1", []),
        ("CREDIT_CARD", "4111 1111 1111 1111, 378282246310005!", ["4111 1111 1111 1111", "378282246310005"]),
        ("CREDIT_CARD", "4111-1111-1111-1111 2025 and 4111 1111 1111 1112", ["4111-1111-1111-1111"]),
        ("CREDIT_CARD", "id 41111111111111112222222, x4111111111111111", []),
        ("IP_ADDRESS", "10.0.0.1, 256.1.1.1, 1.2.3.4.5, v1.2.3.4-beta", ["10.0.0.1"]),
        ("IP_ADDRESS", "fe80::1ff:fe23:4567:890a and ::1", ["fe80::1ff:fe23:4567:890a", "::1"]),
        ("IP_ADDRESS", "at 12:30:45, std::string, a::b(), 10:20, ::", []),
        ("PHONE_NUMBER", "(555) 123-4567 or 555-123-4567", ["(555) 123-4567", "555-123-4567"]),
        ("PHONE_NUMBER", "+44 20 7946 0958, +4915112345678", ["+44 20 7946 0958", "+4915112345678"]),
        ("PHONE_NUMBER", "in 1998-2004 12 or 3.14159 2+2", []),
        ("IBAN_CODE", "pay DE89 3704 0044 0532 0130 00 AND go", ["DE89 3704 0044 0532 0130 00"]),
        ("IBAN_CODE", "GB82WEST12345698765432, GB83WEST12345698765432", ["GB82WEST12345698765432"]),
        ("URL", "see https://x.org/a_(b)?q=1. (or http://y.org)", ["https://x.org/a_(b)?q=1", "http://y.org"]),
        ("MAC_ADDRESS", "00:1A:2b:3c:4D:5e, 00-1a-2b-3c-4d-5e-6f", ["00:1A:2b:3c:4D:5e"]),
    ],
)  # fmt: skip
def test_builtins(name: str, text: str, found: list[str]) -> None:
    assert spans(text, builtin=[name]) == found
    assert [f.entity_type for f in find(text, builtin=[name])] == [name] * len(found)


@pytest.mark.parametrize("name", BUILTINS)
def test_builtins_are_linear(name: str) -> None:
    """Long runs of what a match may begin with: a quadratic search would run into the scanner's timeout."""
    for run in ("a", "1", "a.", "1.", "a:", "1-", "-", "::", "A1 ", "+1", "(", "http://", "1 ", "ab-"):
        find(run * (200_000 // len(run)), builtin=[name])


@given(st.integers(0, 10**15 - 1))
def test_luhn_tells_every_single_wrong_digit(number: int) -> None:
    body = f"{number:015}"
    [check] = [d for d in "0123456789" if luhn(body + d)]
    right = body + check
    position = number % 16
    wrong = str((int(right[position]) + 1 + number % 9) % 10)
    assert not luhn(right[:position] + wrong + right[position + 1 :])


def test_words_are_whole_words_in_any_case_and_phrases_bridge_white_space() -> None:
    words = ["cat", "project zephyr", "c++", "猫", "cat burglar"]
    text = "Cat, concat cats; PROJECT\n  Zephyr! c++ is C++, c++11, 黒猫だ: cat burglar"
    assert spans(text, words=words) == ["Cat", "PROJECT\n  Zephyr", "c++", "C++", "猫", "cat burglar"]


def test_a_long_word_list_costs_what_a_short_one_does() -> None:
    words = [f"word{n:05}x" for n in range(2_000)]
    assert spans("a word01999x " + PROSE * 20, words=words) == ["word01999x"]


@pytest.mark.parametrize(
    "hidden",
    ["рrоjесt zерhуr", "Ｐｒｏｊｅｃｔ　Ｚｅｐｈｙｒ", "pro\u200bject ze\u00adphyr", "projéct zëphyr",
     "𝓹𝓻𝓸𝓳𝓮𝓬𝓽 𝓏𝑒𝓅𝒽𝓎𝓇",     "p\u0336r\u0336oject zephyr", "project\u00a0zephyr", "ᴘʀᴏᴊᴇᴄᴛ zephyr",
     "🅿🆁🅾🅹🅴🅲🆃 zephyr", "project zephyr\ufe0f"],
)  # fmt: skip
def test_disguises_are_seen_through_and_reported_in_the_originals_offsets(hidden: str) -> None:
    text = f"über {hidden}, naïve"
    [finding] = find(text, patterns=[r"(?i)\bproject\s+zephyr\b"])
    assert text[finding.start : finding.end].rstrip("\ufe0f") == hidden.rstrip("\ufe0f")
    if not hidden.startswith("project"):  # "project\u00a0zephyr" is no disguise for \\s
        assert find(text, patterns=[r"(?i)\bproject\s+zephyr\b"], normalize=False) == []


def test_what_is_written_with_accents_is_found_as_it_is() -> None:
    assert spans("le café, cafe", patterns=["café"]) == ["café"]
    assert spans("le café, cafe", words=["café"]) == ["café", "cafe"]
    assert spans("привет", words=["привет"]) == ["привет"]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("allow", "mail a@b.org now"),
        ("redact", "mail [EMAIL_ADDRESS] now"),
        ("block", "mail "),
        ("escalate", "mail "),
    ],
)
def test_actions(action: str, expected: str) -> None:
    assert moderated("mail a@b.org now", builtin=["EMAIL"], action=action) == expected


def test_hash_tells_equal_values_and_nothing_else() -> None:
    one, two, three = (moderated(f"{who}@b.org", builtin=["EMAIL"], action="hash") for who in ("a", "a", "c"))
    assert one == two != three
    assert one.startswith("[EMAIL_ADDRESS:")
    other = SimpleNamespace(hash_key=b"x" * 32, on_error=ENV.on_error)
    step = patterns.build(PatternsSpec(builtin=("EMAIL",), action="hash"), other).examine(Context())  # type: ignore[arg-type]
    assert step.advance("a@b.org", True).findings[0].replacement != one


def test_own_names_scores_and_replacement() -> None:
    own = Pattern(name="TICKET", regex=r"\bT-\d{4}\b", score=0.5)
    [finding] = find("see T-1234", patterns=[own], action="redact", replacement="(ticket)")
    assert (finding.entity_type, finding.score, finding.guard) == ("TICKET", 0.5, "patterns")
    assert moderated("see T-1234", patterns=[own], action="redact", replacement="(ticket)") == "see (ticket)"


def test_problems_name_the_place() -> None:
    spec = PatternsSpec(
        patterns=("fine", r"a\X", Pattern(name="p", regex="(")), builtin=("EMAIL_ADRESS",), words=("ok", " ")
    )
    found = {problem.loc: problem.message for problem in patterns.problems(spec, ENV)}
    assert list(found) == [("patterns", 1), ("patterns", 2, "regex"), ("builtin", 0), ("words", 1)]
    assert "'EMAIL_ADDRESS'" in found["builtin", 0]
    assert not list(
        patterns.problems(PatternsSpec(patterns=("fine",), builtin=tuple(BUILTINS), words=("a",)), ENV)
    )


ALL = {
    "builtin": list(BUILTINS),
    "patterns": [r"(?i)\bproject\s+zephyr\b", r"\bACME-[0-9]{6}\b"],
    "words": ["darn", "gosh golly"],
}  # fmt: skip


def held_word(text: str) -> int:
    """Where the current word, with the signs around it, begins."""
    return max(text.rfind(" "), text.rfind("\n")) + 1


@pytest.mark.parametrize("step", [1, 3, 7])
def test_nothing_beyond_the_current_word_is_held_back_from_prose(step: int) -> None:
    moderator = Moderator([guard(**ALL, action="redact")], Context())
    released = ""
    for end in range(0, len(PROSE) + step, step):
        moderator.feed(PROSE[len(released) + moderator.held : end])
        released += moderator.release().text
        arrived = PROSE[:end]
        limit = held_word(arrived)
        # A number may be the beginning of a longer one ("12 …", "1998 …"): then that is the current word.
        while (words := arrived[:limit].split()) and words[-1].strip("().,-:!?").isdigit():
            limit = held_word(arrived[: limit - 1])
        assert len(released) >= limit, (released[-20:], arrived[len(released) :])


def test_only_digits_that_could_go_on_hold_the_number_back() -> None:
    cases = {
        "In 1998 ": 8,
        "In 4998 ": 3,
        "In 4998 s": 8,
        "built 40 years": 9,
        "12 houses": 3,
        "pro": 0,
        "project": 0,
        "projects ": 9,
    }
    for text, released in cases.items():
        moderator = Moderator([guard(**ALL, action="redact")], Context())
        moderator.feed(text)
        assert len(moderator.release().text) == released, text


PIECES = [
    "jo@x.org", "jo", "@", "x.org", "123-45-6789", "123", "-45", "-6789", "4111 1111 1111 1111", "10.0.0.1",
    " ", "\n",    "zephyr", "project ", "рrоjесt", "\u200b", "ﬁ", "é", "１２３", "𝟙", "½", "\U000e0041", "ﷺ",
    "darn", "ＤＡＲＮ", ".", "+", "日本",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=30),
    st.sets(st.integers(0, 60)),
)
def test_chunks_change_nothing(text: str, cuts: set[int]) -> None:
    settings: Any = {**ALL, "action": "redact"}
    whole = find(text, **settings)
    assert sorted(set(find(text, *sorted(cut for cut in cuts if cut <= len(text)), **settings))) == whole
    moderator, released = Moderator([guard(**settings)], Context()), ""
    expected = moderated(text, **settings)
    for char in text:
        moderator.feed(char)
        released += moderator.release().text
        assert expected.startswith(released)
    moderator.feed("", final=True)
    assert released + moderator.release().text == expected
