"""Phrase automata against the plain reading of what they find."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.alignment.phrases import PhraseAutomaton, TooManyStates

ALPHABET = "aAbsSßé É-–'‘.x 1_中。😀ſkK"
TEXTS = st.text(st.sampled_from(ALPHABET), max_size=14)
PHRASES = st.text(st.sampled_from("abs ßé-x1中kS"), min_size=1, max_size=4).filter(str.strip)


def word(character: str) -> bool:
    """A word's character, by the automaton's own statement of what it takes for one."""
    if ord(character) < 0x100:
        return character.isalnum() or character == "_" or ord(character) >= 0xC0
    return not (
        0x2000 <= ord(character) < 0x2080 or 0x3000 <= ord(character) < 0x3040 or ord(character) >= 0x1F000
    )


def found(phrase: str, text: str, whole_words: bool) -> bool:
    """Whether `phrase` stands in `text`: every cut of the text is folded and compared."""
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            if text[start:end].casefold() != phrase.casefold():
                continue
            folded = phrase.casefold()
            spaced = [(c.isalnum() or c == "_") and ord(c) < 0x2E80 for c in (folded[0], folded[-1])]
            left = start > 0 and spaced[0] and word(text[start - 1])
            right = end < len(text) and spaced[1] and word(text[end])
            if not (whole_words and (left or right)):
                return True
    return False


@given(phrases=st.lists(PHRASES, min_size=1, max_size=3), text=TEXTS, whole_words=st.booleans())
def test_it_finds_what_stands_in_the_text(phrases: list[str], text: str, whole_words: bool) -> None:
    automaton = PhraseAutomaton(phrases, whole_words=whole_words)
    state, hit = automaton.walk(0, text.encode())
    assert (hit or bool(automaton.pending[state])) == any(found(p, text, whole_words) for p in phrases)


@given(text=TEXTS, cut=st.integers(0, 60))
def test_where_the_bytes_are_cut_changes_nothing(text: str, cut: int) -> None:
    automaton = PhraseAutomaton(["ass", "é-x"])
    data = text.encode()
    middle, first = automaton.walk(0, data[:cut])
    state, second = automaton.walk(middle, data[cut:])
    assert (state, first or second) == automaton.walk(0, data)


def test_a_phrase_is_completed_when_it_can_no_longer_be_part_of_a_longer_word() -> None:
    automaton = PhraseAutomaton(["ass"])
    state, hit = automaton.walk(0, b"an ass")
    assert not hit and automaton.pending[state]
    assert automaton.walk(state, b".")[1]
    assert not automaton.walk(state, b"et")[1]
    assert automaton.walk(state, "–".encode())[1]  # a dash, known at its second byte


def test_case_sensitive_phrases_are_compared_as_they_are() -> None:
    automaton = PhraseAutomaton(["US"], case_sensitive=True)
    assert automaton.walk(0, b"the US.")[1]
    assert not automaton.walk(0, b"tell us.")[1]


def test_many_phrases_are_one_automaton() -> None:
    words = re.findall(r"\w+", " ".join(f"phrase number{n} of many" for n in range(150)))
    automaton = PhraseAutomaton([f"{a} {b}" for a, b in pairwise(words)])
    assert automaton.walk(0, b"see NUMBER77 of, then")[1]
    assert not automaton.walk(0, b"see number77of, then")[1]


def test_too_many_states_are_refused() -> None:
    with pytest.raises(TooManyStates, match="fewer or shorter"):
        PhraseAutomaton([f"{n:05d}" + "abcdefghij" * 20 for n in range(120)])


@pytest.mark.parametrize("phrases", [[], [""], ["ok", "  "]])
def test_empty_phrases_are_refused(phrases: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one character"):
        PhraseAutomaton(phrases)
