"""JSON as a guard should read it: decoded, name beside value; and the way back into the raw text.

`JsonText.view` has one line for every member and item, such as `password: hunter2`. Escapes are decoded, so
that `\\u0070assword` hides nothing, and a pattern sees a value as the tool will see it. `pieces` maps a span
of the view to what stands for it in the raw text, so cut that a replacement leaves the JSON valid.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import regex

_TOKEN = regex.compile(r'"(?:[^"\\]++|\\.)*+"|[-+.0-9A-Za-z]++|[{}\[\]:,]')
_ESCAPE = regex.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))"
)
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class Piece(NamedTuple):
    """`raw[start:end]`: part of a string's inside, or (`scalar`) a whole number, true, false or null."""

    start: int
    end: int
    scalar: bool

    def encode(self, replacement: str) -> str:
        """`replacement` as it may be put in this piece's place."""
        quoted = json.dumps(replacement, ensure_ascii=False)
        return quoted if self.scalar else quoted[1:-1]


@dataclass(frozen=True, slots=True)
class _Token:
    """A string's inside or a scalar, in the raw text and in the view.

    `offsets[i]` is where the view's i-th character of it begins in the raw text, and the last is the end;
    None where the two agree.
    """

    start: int
    end: int
    view_start: int
    view_end: int
    scalar: bool
    offsets: tuple[int, ...] | None

    def piece(self, view_start: int, view_end: int) -> Piece:
        """The piece for a part of the token, in the view's offsets."""
        if self.scalar:
            return Piece(self.start, self.end, True)
        first, last = view_start - self.view_start, view_end - self.view_start
        if self.offsets is None:
            return Piece(self.start + first, self.start + last, False)
        return Piece(self.offsets[first], self.offsets[last], False)

    def raw_piece(self, start: int, end: int) -> Piece:
        """The piece for a part of the token, in the raw text's offsets; an escape is taken whole."""
        if self.scalar:
            return Piece(self.start, self.end, True)
        if self.offsets is None:
            return Piece(start, end, False)
        first = bisect_right(self.offsets, start) - 1
        return Piece(self.offsets[first], self.offsets[bisect_left(self.offsets, end)], False)


class JsonText:
    """A JSON text with its decoded view.

    data: what the text says. Members given twice: all are in the view, the last is in `data`.
    """

    def __init__(self, raw: str) -> None:
        """Raises ValueError for what isn't JSON, RecursionError for what is nested too deep."""
        self.data: Any = json.loads(raw, parse_constant=_refuse)
        self._tokens: list[_Token] = []
        self.view = self._read(raw)
        self._view_ends = [token.view_end for token in self._tokens]
        self._ends = [token.end for token in self._tokens]

    def _read(self, raw: str) -> str:
        pieces: list[str] = []
        length = 0
        for match in _TOKEN.finditer(raw):
            text = match.group()
            if text == ":":
                pieces[-1] = ": "
                length += 1
            elif text not in ("{", "}", "[", "]", ","):
                token, decoded = _token(match, length)
                self._tokens.append(token)
                pieces += [decoded, "\n"]
                length += len(decoded) + 1
        return "".join(pieces)

    def pieces(self, view_start: int, view_end: int) -> Iterator[Piece]:
        """What stands for `view[view_start:view_end]`; nothing for what lies between values."""
        for token in self._tokens[bisect_right(self._view_ends, view_start) :]:
            if token.view_start >= view_end or view_start >= view_end:
                return
            if token.view_start < token.view_end:
                yield token.piece(max(view_start, token.view_start), min(view_end, token.view_end))

    def raw_pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The parts of `raw[start:end]` that may be replaced."""
        for token in self._tokens[bisect_right(self._ends, start) :]:
            if token.start >= end or start >= end:
                return
            if token.start < token.end:
                yield token.raw_piece(max(start, token.start), min(end, token.end))


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _token(match: regex.Match[str], at: int) -> tuple[_Token, str]:
    """The token and its decoded text; `at` is where it begins in the view."""
    text, start, end = match.group(), match.start(), match.end()
    if not text.startswith('"'):
        return _Token(start, end, at, at + len(text), True, None), text
    inside = text[1:-1]
    start, end = start + 1, end - 1
    if "\\" not in inside:
        return _Token(start, end, at, at + len(inside), False, None), inside
    decoded: list[str] = []
    offsets: list[int] = []
    position = 0
    for escape in _ESCAPE.finditer(inside):
        decoded.append(inside[position : escape.start()])
        offsets += range(start + position, start + escape.start() + 1)
        decoded.append(_decode(escape))
        position = escape.end()
    decoded.append(inside[position:])
    offsets += range(start + position, end + 1)
    value = "".join(decoded)
    return _Token(start, end, at, at + len(value), False, tuple(offsets)), value


def _decode(escape: regex.Match[str]) -> str:
    high, low, unit, short = escape.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
    if unit:
        code = int(unit, 16)
        return "\N{REPLACEMENT CHARACTER}" if 0xD800 <= code <= 0xDFFF else chr(code)
    return _SHORT.get(short, short)
