"""Topics: phrases, inflections, and when a text becomes about something."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.build import GuardEnvironment
from guardrails.checks.topics import TopicsGuard, build, problems
from guardrails.guard import Context
from guardrails.verdict import Action, Finding
from policies.registry import Registry
from policies.spec import TopicsSpec

ENV = GuardEnvironment(Registry("nowhere"), b"")


def topics(**deny: object) -> TopicsGuard:
    return build(TopicsSpec.model_validate({"deny": deny}), ENV)


def found(guard: TopicsGuard, text: str) -> list[str]:
    step = guard.examine(Context()).advance(text, True)
    assert step.settled == len(text)
    return [text[f.start : f.end] for f in sorted(step.findings)]


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("bet", ["bet", "Bets", "betting", "bet's"]),
        ("gamble", ["gambles", "gambled", "GAMBLING", "gambler", "gamblers"]),
        ("casino", ["casino", "casinos", "casino’s"]),
        ("elections", ["election", "elections"]),
        ("policy", ["policy", "policies"]),
        ("stock pick", ["stock pick", "stocks  picks", "stock-picking", "stock\npicked", "stock_pick"]),
        ("classes", ["class", "classes"]),
        ("money laundering", ["money laundering"]),
        ("électricité", ["électricité", "electricite", "ÉLECTRICITÉ"]),
        ("выборы", ["выборы", "ВЫБОРЫ"]),
        ("C4", ["c4", "C4"]),
        ("election", ["e\u200blection", "еlесtion", "ｅｌｅｃｔｉｏｎ"]),
    ],
)
def test_phrases_in_their_forms(phrase: str, said: list[str]) -> None:
    guard = topics(subject={"phrases": [phrase]})
    for form in said:
        assert found(guard, f"about {form}, you know") == [form]


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("bet", "better alphabet, abetting, but no b e t"),
        ("stock pick", "stock and pick, stockpick"),
        ("class", "classic, classify"),
        ("us", "bus, using"),
        ("C4", "c44 ac4"),
    ],
)
def test_other_words_are_other_words(phrase: str, text: str) -> None:
    assert found(topics(subject={"phrases": [phrase]}), text) == []


def test_a_text_is_about_a_topic_from_the_phrase_that_makes_it_so() -> None:
    guard = topics(gambling={"phrases": ["bet", "casino", "roulette"], "min_hits": 2})
    assert found(guard, "a bet, bets, betting") == []
    assert found(guard, "a bet in a casino on roulette with a bet") == ["casino", "roulette", "bet"]
    step = guard.examine(Context()).advance("one bet", True)
    assert step.scores == {"gambling": 0.5} and not step.findings


def test_topics_are_counted_apart_and_phrases_may_overlap() -> None:
    guard = topics(
        a={"phrases": ["credit card", "card fraud"], "min_hits": 2},
        b={"phrases": ["fraud", "scam"], "min_hits": 2},
    )
    step = guard.examine(Context()).advance("credit card fraud", True)
    assert [(f.entity_type, f.start, f.end) for f in step.findings] == [("a", 7, 17)]
    assert step.scores == {"a": 1.0, "b": 0.5}


def test_the_guard_says_what_it_can_do() -> None:
    guard = build(TopicsSpec.model_validate({"deny": {"x": {"phrases": ["y"]}}, "action": "escalate"}), ENV)
    assert (guard.action, guard.changes_text, guard.servables) == (Action.ESCALATE, False, frozenset())


def test_what_can_never_be_found_is_told() -> None:
    spec = TopicsSpec.model_validate(
        {
            "deny": {
                "a": {"phrases": ["...", "x"]},
                "b": {"phrases": ["one"], "min_hits": 2},
                "c": {"phrases": ["bet", "bets"], "min_hits": 2},
            }
        }
    )
    assert [(problem.loc, problem.message.split(" in the ")[0]) for problem in problems(spec, ENV)] == [
        (("deny", "a", "phrases", 0), "a phrase needs at least one word"),
        (("deny", "b", "min_hits"), "2 different phrases can't be found where 1 are given"),
        (("deny", "c", "min_hits"), "only 1 of the phrases are different from each other"),
    ]


GUARD = topics(
    gambling={"phrases": ["bet", "casino night", "night shift"], "min_hits": 2},
    politics={"phrases": ["election"]},
)
_PIECES = st.lists(
    st.sampled_from(
        [
            "bet",
            "betting",
            "casino",
            " ",
            "-",
            "night",
            "shift",
            "election",
            "s",
            "е",
            "\u200b",
            ".",
            "é",
            "\n",
            "x",
        ]
    ),
    max_size=14,
)


@given(pieces=_PIECES, cuts=st.lists(st.integers(0, 200), max_size=10))
def test_a_stream_finds_what_the_whole_text_has(pieces: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    examination, settled = GUARD.examine(Context()), 0
    told: list[Finding] = []
    scores: dict[str, float] = {}
    for _, end in pairwise([0, *edges]):
        step = examination.advance(text[:end], False)
        assert settled <= step.settled <= end
        assert all(settled <= finding.start and finding.end <= step.settled for finding in step.findings)
        told, settled = [*told, *step.findings], step.settled
        scores |= step.scores
    last = examination.advance(text, True)
    assert all(finding.start >= settled for finding in last.findings)
    whole = GUARD.examine(Context()).advance(text, True)
    assert sorted([*told, *last.findings]) == sorted(whole.findings)
    assert scores | last.scores == whole.scores


def test_nothing_of_prose_is_held_beyond_the_current_word() -> None:
    text = "We spoke of the weather, of casinos at noon and of the night before the long day. " * 2
    examination = GUARD.examine(Context())
    for end in range(len(text) + 1):
        held = text[examination.advance(text[:end], False).settled : end]
        assert len(held.split()) <= 1 or held.startswith(("casino", "night")), held
