"""Groups of overlapping matches: a function of the text, complete as soon as they can be, never later."""

from __future__ import annotations

import regex
from hypothesis import given
from hypothesis import strategies as st

from guardrails.clusters import ClusterSearch
from guardrails.scan import PatternSet, StreamPattern

SOURCES = (
    r"\b[0-9]{3}-[0-9]{2}\b",
    r"\d{2,5}",
    r"\b[\w.+-]+@\w+(?:\.\w+)+\b",
    r"(?:[(+][ ]?){0,2}\d(?:[ ()+-]*\d){2,}",
)
AFTER = (0, 0, 0, 3)
PATTERNS = PatternSet([StreamPattern.compile(source, source) for source in SOURCES])

texts = st.lists(
    st.sampled_from([*"1 23 456 - ( ) + a word b.c @ : é ，".split(), " ", "\n"]),
    max_size=14,
).map("".join)


def expected(text: str) -> list[list[tuple[int, int, int]]]:
    matches = sorted(
        (m.start(), m.end(), index)
        for index, source in enumerate(SOURCES)
        for m in regex.finditer(source, text)
        if m.end() > m.start()
    )
    groups: list[list[tuple[int, int, int]]] = []
    end = -1
    for match in matches:
        if match[0] < end:
            groups[-1].append(match)
        else:
            groups.append([match])
        end = max(end, match[1])
    return groups


def searched(text: str, cuts: set[int], quick: bool) -> list[list[tuple[int, int, int]]]:
    search = ClusterSearch(PATTERNS, AFTER, quick)
    found = []
    settled = 0
    for at in sorted({cut for cut in cuts if cut < len(text)} | {len(text)}):
        final = at == len(text)
        groups, now = search.advance(text[:at], final)
        for group in groups:
            # Nothing is reported late, and what a recognizer may look at after a match has arrived.
            assert settled <= group[0].start
            assert max(m.end for m in group) <= now
            assert final or all(m.end + AFTER[m.pattern] <= at for m in group)
        assert settled <= now <= at
        settled = now
        found += [sorted((m.start, m.end, m.pattern) for m in group) for group in groups]
    assert settled == len(text)
    return found


@given(texts, st.sets(st.integers(0, 40)), st.booleans())
def test_groups_are_those_of_the_whole_text_however_it_is_cut(text: str, cuts: set[int], quick: bool) -> None:
    groups = [sorted(group) for group in expected(text)]
    assert searched(text, cuts, quick) == groups


def test_prose_is_held_back_by_no_more_than_the_current_word() -> None:
    prose = "It lies on the river Seine, and has about two million inhabitants. A lovely place! "
    search = ClusterSearch(PATTERNS, AFTER, quick=True)
    for at in range(1, len(prose)):
        _, settled = search.advance(prose[:at], False)
        assert settled >= max(prose.rfind(mark, 0, at) for mark in " ,") + 1


def test_a_group_waits_for_the_characters_after_it_that_matter() -> None:
    search = ClusterSearch(PATTERNS, AFTER, quick=True)
    assert search.advance("call 555 123x", False) == ([], 5)
    groups, settled = search.advance("call 555 123x ok", False)
    assert [(m.start, m.end) for m in groups[0]] == [(5, 8), (5, 12), (9, 12)]
    assert settled >= 12
