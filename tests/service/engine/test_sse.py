"""The SSE parser: the standard's rules, and that cutting the bytes never matters."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.sse import SseError, SseParser

STREAM_PIECES = [
    b'data: {"a": 1}\n\n',
    b"data: x\n\n",
    b"data:no space\r\n\r\n",
    b"data: one\r\ndata: two\r\n\r\n",
    b"data: one\ndata: two\n\n",
    b"data: one\rdata: two\r\r",
    b": a comment\n\n",
    b"event: message\nid: 7\ndata: named\nretry: 10\n\n",
    b"data\n\n",
    b"data: \xc3\xa9\xf0\x9f\x98\x80 \xe2\x80\xa8 \x0b \x85 not line ends\n\n",
    b"\n\n\r\n",
    b"data:  two spaces\n\n",
    b"database: other field\n\n",
]


def parse(chunks: list[bytes], max_event: int = 1 << 20) -> list[bytes]:
    parser = SseParser(max_event)
    return [payload for chunk in chunks for payload in parser.feed(chunk)]


def cut(data: bytes, offsets: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(o % (len(data) + 1) for o in offsets)})
    return [data[a:b] for a, b in itertools.pairwise(edges)] or [b""]


@pytest.mark.parametrize(
    ("data", "payloads"),
    [
        (b"data: x\n\n", [b"x"]),
        (b"\xef\xbb\xbfdata: x\n\n", [b"x"]),
        (b"data: x\n\ndata: \xef\xbb\xbfy\n\n", [b"x", b"\xef\xbb\xbfy"]),
        (b"data:x\r\n\r\ndata: y\r\r", [b"x", b"y"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b": ping\n\n: ping\n\ndata: x\n\n", [b"x"]),
        (b"event: e\nid: 1\ndata: x\n\n", [b"x"]),
        (b"data\n\n", [b""]),
        (b"data:  x\n\n", [b" x"]),
        (b"data: unfinished\n", []),
        (b"data: a\x0bb\x85c\xe2\x80\xa8d\n\n", [b"a\x0bb\x85c\xe2\x80\xa8d"]),
        (b"\n\n\n", []),
    ],
)
def test_the_standards_cases(data: bytes, payloads: list[bytes]) -> None:
    assert parse([data]) == payloads
    assert parse([data[i : i + 1] for i in range(len(data))]) == payloads


@given(
    pieces=st.lists(st.sampled_from(STREAM_PIECES), max_size=8),
    bom=st.booleans(),
    offsets=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_cutting_changes_nothing(pieces: list[bytes], bom: bool, offsets: list[int]) -> None:
    data = (b"\xef\xbb\xbf" if bom else b"") + b"".join(pieces)
    assert parse(cut(data, offsets)) == parse([data])


@pytest.mark.parametrize("piece", STREAM_PIECES)
@pytest.mark.parametrize("before", [b"", b"data: start\n\n", b"data: start\r\r"])
def test_every_way_of_cutting_once_or_twice(piece: bytes, before: bytes) -> None:
    data = piece + b"data: next\n\n"
    whole = parse([before + data])
    assert b"next" in whole
    for first in range(len(data)):
        for second in range(first, len(data)):
            assert parse([before, data[:first], data[first:second], data[second:]]) == whole


@given(data=st.binary(max_size=200), offsets=st.lists(st.integers(0, 10_000), max_size=12))
def test_arbitrary_bytes_cut_anywhere(data: bytes, offsets: list[int]) -> None:
    whole = parse([b"data: start\n\n" + data])
    assert whole[0] == b"start"
    assert parse(cut(b"data: start\n\n" + data, offsets)) == whole


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_a_line_without_end_is_bounded(chunk: int) -> None:
    data = b"data: " + b"x" * 5000
    with pytest.raises(SseError, match="1000 bytes"):
        parse([data[i : i + chunk] for i in range(0, len(data), chunk)], max_event=1000)


def test_an_event_of_many_lines_is_bounded() -> None:
    with pytest.raises(SseError, match="an event exceeds 1000 bytes"):
        parse([b"data: 12345\n"] * 1000, max_event=1000)


def test_pending_tells_an_unfinished_event() -> None:
    parser = SseParser()
    states = [parser.pending]
    for chunk in (b"data: x", b"\n", b"\n"):
        parser.feed(chunk)
        states.append(parser.pending)
    assert states == [False, True, True, False]
