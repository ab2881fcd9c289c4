"""Pairing log-probability entries with the characters that they stand for."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.openai.logprobs import (
    Aligner,
    Entry,
    Paired,
    chat_entries,
    completion_entries,
    render_chat,
    render_completion,
)


def entries_of(*tokens: str | bytes) -> list[Entry]:
    return [Entry(t, t.encode() if isinstance(t, str) else t) for t in tokens]


def test_one_token_a_chunk() -> None:
    aligner = Aligner()
    for token in ("Hel", "lo", " wörld"):
        (paired,) = aligner.feed(token, entries_of(token))
        assert paired == Paired(token, tuple(entries_of(token)))


def test_entries_ahead_of_their_text_wait() -> None:
    aligner = Aligner()
    assert aligner.feed("", entries_of("STO")) == []
    assert aligner.feed("", entries_of("RM")) == []
    assert aligner.feed("STORM", []) == [
        Paired("STO", tuple(entries_of("STO"))),
        Paired("RM", tuple(entries_of("RM"))),
    ]


def test_a_token_whose_text_comes_in_pieces_is_not_paired() -> None:
    aligner = Aligner()
    assert aligner.feed("He", entries_of("Hello", " you")) == [Paired("He")]
    assert aligner.feed("llo you", []) == [Paired("llo"), Paired(" you", tuple(entries_of(" you")))]


def test_end_markers_are_dropped() -> None:
    aligner = Aligner()
    assert aligner.feed("Hi", entries_of("Hi", "<|end|>")) == [Paired("Hi", tuple(entries_of("Hi")))]
    assert aligner.feed("more", entries_of("more")) == [Paired("more", tuple(entries_of("more")))]


def test_tokens_that_share_a_character_go_together() -> None:
    snowman = "☃".encode()
    parts = entries_of(snowman[:1], snowman[1:])
    assert Aligner().feed("☃!", [*parts, *entries_of("!")]) == [
        Paired("☃", tuple(parts)),
        Paired("!", tuple(entries_of("!"))),
    ]


@given(st.text(max_size=30), st.data())
def test_text_is_kept_and_pairs_are_exact(text: str, data: Any) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=10)) | {0, len(raw)})
    tokens = [raw[a:b] for a, b in itertools.pairwise(cuts)]
    places = data.draw(st.sets(st.integers(0, len(text)), max_size=5)) | {0, len(text)}
    bounds = sorted(places)
    chunks = [text[a:b] for a, b in itertools.pairwise(bounds)]
    aligner, seen, given_so_far = Aligner(), list[Paired](), 0
    for number, chunk in enumerate(chunks):
        count = (
            len(tokens) if number + 1 == len(chunks) else data.draw(st.integers(given_so_far, len(tokens)))
        )
        seen += aligner.feed(chunk, [Entry(t, t) for t in tokens[given_so_far:count]])
        given_so_far = count
    assert "".join(paired.text for paired in seen) == text
    for paired in seen:
        if paired.entries:
            assert b"".join(e.data for e in paired.entries) == paired.text.encode("utf-8", "surrogatepass")
    if len(chunks) == 1:
        assert [entry.data for paired in seen for entry in paired.entries] == [t for t in tokens if t]


@given(st.lists(st.tuples(st.text(max_size=4), st.binary(max_size=4)), max_size=8))
def test_nonsense_loses_no_text(pairs: list[tuple[str, bytes]]) -> None:
    aligner = Aligner()
    out = [paired for text, token in pairs for paired in aligner.feed(text, [Entry(token, token)])]
    assert "".join(paired.text for paired in out) == "".join(text for text, _ in pairs)
    for paired in out:
        if paired.entries:
            assert b"".join(e.data for e in paired.entries) == paired.text.encode("utf-8", "surrogatepass")


def test_both_forms_there_and_back() -> None:
    chat = [{"token": "a", "bytes": [97], "logprob": -1.0}, {"token": "é", "bytes": None, "logprob": -2.0}]
    assert [entry.data for entry in chat_entries(chat)] == [b"a", "é".encode()]
    assert render_chat(chat_entries(chat)) == {"content": chat, "refusal": None}
    assert render_chat([]) is None
    plain = {
        "tokens": ["a", "b"],
        "token_logprobs": [-1.0, None],
        "text_offset": [0, 1],
        "top_logprobs": None,
    }
    rendered = render_completion(completion_entries(plain)[1:])
    assert rendered == {"tokens": ["b"], "token_logprobs": [None], "text_offset": [1]}
    assert completion_entries(None) == []
