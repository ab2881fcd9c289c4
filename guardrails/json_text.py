"""JSON as a guard should read it, while it grows: decoded, name beside value.

The view has one line for every member and item, such as `password: hunter2`. Escapes are decoded, so that
`\\u0070assword` hides nothing, and a pattern sees a value as the tool will see it. The way back into the raw
text is cut so that a replacement leaves the JSON valid (`guardrails.json_view`).

The view of a text's beginning is the beginning of its view, whatever follows. So it is for a text that turns
out to be no JSON: from the place where that is certain on, it is shown as it is, but for escapes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import regex

from guardrails.json_view import DecodedView, Piece, Token

__all__ = ["GrowingJson", "JsonText", "Piece"]

_SPACE = regex.compile(r"[ \t\n\r]*+")
_PLAIN = regex.compile(r'[^"\\\x00-\x1f]*+')
_NO_ESCAPE = regex.compile(r"[^\\]*+")
_ESCAPE = regex.compile(r'\\(?:u(?P<unit>[0-9a-fA-F]{4})|(?P<short>["\\/bfnrt]))')
# What parsers that are not strict take for an escape.
_LENIENT = regex.compile(r"(?s)\\(?:u(?P<unit>[0-9a-fA-F]{4})|x(?P<unit>[0-9a-fA-F]{2})|(?P<short>[^ux]))")
_LOW = regex.compile(r"\\u(?P<unit>[dD][c-fC-F][0-9a-fA-F]{2})")
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_CLOSES = {"{": "}", "[": "]"}
_BEGINS_SCALAR = frozenset("-0123456789tfn")


def _scalars() -> dict[tuple[str, str], str]:
    """RFC 8259's numbers and literals, as an automaton: from a state and a character to the next state."""
    following = {
        "": {"-": "minus", "0": "zero", "1": "int"},
        "minus": {"0": "zero", "1": "int"},
        "zero": {".": "point", "e": "e"},
        "int": {"0": "int", "1": "int", ".": "point", "e": "e"},
        "point": {"0": "fraction", "1": "fraction"},
        "fraction": {"0": "fraction", "1": "fraction", "e": "e"},
        "e": {"0": "power", "1": "power", "+": "sign", "-": "sign"},
        "sign": {"0": "power", "1": "power"},
        "power": {"0": "power", "1": "power"},
    }
    alike = {"1": "123456789", "e": "eE"}
    table = {
        (state, char): then
        for state, edges in following.items()
        for kind, then in edges.items()
        for char in alike.get(kind, kind)
    }
    for word in ("true", "false", "null"):
        table |= {(f'"{word[:i]}' if i else "", word[i]): f'"{word[: i + 1]}' for i in range(len(word))}
    return table


_SCALARS = _scalars()
_WHOLE = frozenset(["zero", "int", "fraction", "power", '"true', '"false', '"null'])


class GrowingJson:
    """A JSON text that grows.

    broken: from where on it is no JSON; None as long as it may be (RFC 8259). A number or literal counts as
        far as a comma, a bracket or the end confirms it.
    """

    def __init__(self) -> None:
        self.broken: int | None = None
        self._view = DecodedView()
        self._at = 0  # all before it has been read
        self._done = -1  # the length of the finished text
        self._open: Token | None = None
        self._key = False  # the open string is a name
        self._scalar = ""  # the open scalar's state
        self._stack: list[str] = []
        self._expect = "value"

    @property
    def view(self) -> str:
        """The decoded text."""
        return self._view.text

    def grow(self, raw: str, final: bool) -> None:
        """Take the text that has arrived by now; `final` says that nothing follows."""
        if self._done >= 0:
            return
        if final:
            self._done = len(raw)
        while self._read(raw, final):
            pass
        self._view.flush()

    def pieces(self, view_start: int, view_end: int) -> Iterator[Piece]:
        """What stands for `view[view_start:view_end]`; nothing for what is put between values."""
        return self._view.pieces(view_start, view_end)

    def raw_pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The parts of `raw[start:end]` that may be replaced."""
        return self._view.raw_pieces(start, end)

    @property
    def unsure(self) -> int:
        """Where in the view a scalar begins that may still go on, and so can't be replaced yet."""
        token = self._open
        return token.view_start if token and token.scalar else sys.maxsize

    def settled(self, view: int) -> int:
        """Up to where the raw text is decided, where the view is up to `view`; a scalar is as a whole."""
        if view > self.unsure:
            return self._open.start if self._open else self._at
        token = self._view.around(view)
        return token.start if token and token.scalar else self.raw_start(view)

    def raw_start(self, view: int) -> int:
        """Where what is shown from `view` on begins in the raw text."""
        start = self._view.raw_start(view)
        return self._at if start is None else start

    def raw_end(self, view: int) -> int:
        """Where what is shown before `view` ends in the raw text."""
        return self._view.raw_end(view)

    def encode(self, start: int, replacement: str) -> str:
        """`replacement` as it may be put where a piece begins at `start`: escaped, in quotes for a scalar."""
        piece = next(self.raw_pieces(start, start + 1), Piece(start, start, False))
        return piece.encode(replacement)

    def _read(self, raw: str, final: bool) -> bool:
        """Read on; False where that takes more text."""
        if self.broken is not None:
            return self._read_broken(raw, final)
        if self._open is None:
            return self._read_structure(raw)
        if self._open.scalar:
            return self._read_scalar(raw, final, self._open)
        return self._read_string(raw, final)

    def _read_structure(self, raw: str) -> bool:
        self._at = at = _end(_SPACE, raw, self._at)
        if at >= len(raw):
            return False
        char, expect, stack = raw[at], self._expect, self._stack
        values = expect in ("value", "item")
        if char == '"' and (values or expect in ("key", "member")):
            self._key = not values
            self._open = self._view.begin(at + 1, scalar=False)
        elif values and char in _BEGINS_SCALAR:
            self._scalar = ""
            self._open = self._view.begin(at, scalar=True)
            return True
        elif values and char in _CLOSES:
            stack.append(char)
            self._expect = "member" if char == "{" else "item"
        elif stack and char == _CLOSES[stack[-1]] and expect in ("after", "item", "member"):
            stack.pop()
            self._expect = "after"
        elif expect == "after" and char == "," and stack:
            self._expect = "key" if stack[-1] == "{" else "value"
        elif expect == "colon" and char == ":":
            self._expect = "value"
        else:
            return self._break(at)
        self._at = at + 1
        return True

    def _read_string(self, raw: str, final: bool) -> bool:
        self._show_run(_PLAIN, raw)
        at = self._at
        if at >= len(raw):
            return False
        if raw[at] == '"':
            self._view.separate(": " if self._key else "\n", at, at + 1)
            self._at, self._open = at + 1, None
            self._expect = "colon" if self._key else "after"
            return True
        if raw[at] != "\\":
            return self._break(at)
        shown = self._show_escape(_ESCAPE, raw, final)
        return False if shown is None else shown or self._break(at)

    def _read_scalar(self, raw: str, final: bool, token: Token) -> bool:
        at = begin = self._at
        while at < len(raw) and (then := _SCALARS.get((self._scalar, raw[at]))):
            self._scalar = then
            at += 1
        if at > begin:
            self._view.show(raw[begin:at], begin)
            self._at = at
        end = _end(_SPACE, raw, at)
        if end >= len(raw) and not final:
            return False
        if self._scalar not in _WHOLE or (end < len(raw) and not (self._stack and raw[end] in ",]}")):
            return self._break(token.start)
        self._view.separate("\n", at, at)
        self._open, self._expect = None, "after"
        return True

    def _read_broken(self, raw: str, final: bool) -> bool:
        self._show_run(_NO_ESCAPE, raw)
        at = self._at
        if at >= len(raw):
            return False
        shown = self._show_escape(_LENIENT, raw, final)
        if shown is False:
            self._view.show("\\", at)
            self._at = at + 1
        return shown is not None

    def _show_run(self, run: regex.Pattern[str], raw: str) -> None:
        end = _end(run, raw, self._at)
        if end > self._at:
            self._view.show(raw[self._at : end], self._at)
            self._at = end

    def _show_escape(self, escape: regex.Pattern[str], raw: str, final: bool) -> bool | None:
        """Show the character that an escape means; False where there is none, None where more text tells."""
        match = escape.match(raw, self._at, partial=True)
        if match is None or match.partial:
            return None if match and not final else False
        unit, end = match["unit"], match.end()
        char = chr(int(unit, 16)) if unit else _SHORT.get(match["short"], match["short"])
        if "\ud800" <= char <= "\udbff":
            low = _LOW.match(raw, end, partial=True)
            if low and not low.partial:
                char, end = _joined(char, low["unit"]), low.end()
            elif low and not final:
                return None
        self._view.show("\N{REPLACEMENT CHARACTER}" if "\ud800" <= char <= "\udfff" else char, self._at, end)
        self._at = end
        return True

    def _break(self, at: int) -> bool:
        """From `at` on it is no JSON."""
        self.broken = at
        if self._open is None:
            self._open = self._view.begin(at, scalar=False)
        self._open.scalar = False
        return True


def _end(run: regex.Pattern[str], raw: str, at: int) -> int:
    match = run.match(raw, at)
    return match.end() if match else at


def _joined(high: str, low: str) -> str:
    """The character that two surrogates make: the high one, and the low one's four digits."""
    return chr(0x10000 + ((ord(high) - 0xD800) << 10) + int(low, 16) - 0xDC00)


class JsonText(GrowingJson):
    """A whole JSON text.

    data: what the text says. Members given twice: all are in the view, the last is in `data`.
    """

    def __init__(self, raw: str) -> None:
        """Raises ValueError for what isn't JSON, RecursionError for what is nested too deep."""
        super().__init__()
        self.data: Any = json.loads(raw, parse_constant=_refuse)
        self.grow(raw, True)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
