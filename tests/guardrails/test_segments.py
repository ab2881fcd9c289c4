"""Segments: a function of the text, known as soon as the text has got there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.segments import Segmenter

texts = st.lists(
    st.sampled_from(["word", "a", "longerword" * 3, " ", "  ", "\n", "\n\n", ".", "! ",
                     '."', "?) ", "3.14", "。", "e.g. ", "é", "\u200b", "😀"]),
    max_size=40,
).map("".join) | st.text(max_size=60)  # fmt: skip
bounds = st.tuples(st.integers(1, 12), st.integers(1, 30)).map(lambda b: (b[0], b[0] + b[1]))


def cut(text: str, shortest: int, longest: int) -> list[str]:
    return [text[a:b] for a, b in Segmenter(shortest, longest).advance(text, True)]


@given(texts, bounds, st.sets(st.integers(0, 200)))
def test_boundaries_do_not_depend_on_the_chunks(text: str, bounds: tuple[int, int], cuts: set[int]) -> None:
    segmenter, segments = Segmenter(*bounds), []
    for end in sorted(cut for cut in cuts if cut <= len(text)):
        new = segmenter.advance(text[:end], False)
        assert all(b <= end for _, b in new)
        segments += new
    segments += segmenter.advance(text, True)
    assert segments == Segmenter(*bounds).advance(text, True)


@given(texts, texts, bounds)
def test_boundaries_of_a_text_begin_those_of_every_longer_one(
    text: str, more: str, bounds: tuple[int, int]
) -> None:
    known = Segmenter(*bounds).advance(text, False)
    assert Segmenter(*bounds).advance(text + more, True)[: len(known)] == known


@given(texts, bounds)
def test_segments_cover_the_text_and_keep_their_lengths(text: str, bounds: tuple[int, int]) -> None:
    shortest, longest = bounds
    segments = cut(text, shortest, longest)
    assert "".join(segments) == text
    assert all(shortest <= len(segment) <= longest for segment in segments[:-1])
    assert all(0 < len(segment) <= longest for segment in segments[-1:])
    open_text = text[sum(b - a for a, b in Segmenter(*bounds).advance(text, False)) :]
    assert len(open_text) < longest, "no more than one segment is ever held"


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("One two three. Four five six! Seven?", ["One two three. ", "Four five six! ", "Seven?"]),
        ("Pi is 3.14159 and more. Yes, so.", ["Pi is 3.14159 and more. ", "Yes, so."]),
        ('"Go now," he said. "Right away!" Then', ['"Go now," he said. ', '"Right away!" ', "Then"]),
        ("No. No. No, never that.", ["No. No. No, never that."]),
        ("first line here\nsecond line", ["first line here\n", "second line"]),
        ("今日は良い天気ですね、そうでしょう。はい", ["今日は良い天気ですね、そうでしょう。", "はい"]),
        ("x" * 25, ["x" * 24, "x"]),
        ("twelve chars and some more", ["twelve chars and some ", "more"]),
    ],
)  # fmt: skip
def test_where_segments_end(text: str, segments: list[str]) -> None:
    assert cut(text, 10, 24) == segments


def test_bounds_must_leave_room() -> None:
    with pytest.raises(ValueError, match="shortest < longest"):
        Segmenter(5, 5)
