"""Private keys in PEM's clothes (RFC 7468), found as they arrive.

A key is found from its BEGIN line and the first characters of its body on, and goes as far as its body
does: through line ends, quotes, escapes and indentation, to the END line or to where prose resumes. The
body is read in units that are decided once and for all, so a long key costs no more per character than a
short one. Beyond `MAX_BLOCK` characters a key is told in several findings, so that no more than that waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import regex

from guardrails.scan import PatternSet, Scanner, StreamPattern

MAX_BLOCK = 16 * 1024

_GAP = r"(?:[\s\"'`+,>|#*]|\\[nr])"
_BASE64 = r"[A-Za-z0-9+/=]"
_UNIT = 64
_HEAD = StreamPattern.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    rf"(?:{_GAP}{{1,8}}+[A-Za-z-]{{3,20}}: [^\n\\]{{1,120}}+){{0,4}}+{_GAP}{{0,16}}+{_BASE64}{{16,{_UNIT}}}+",
    "PRIVATE_KEY",
)
_RUN = regex.compile(rf"{_BASE64}{{0,{_UNIT}}}+")
_END = rf"(?:{_GAP}{{1,16}}+{_BASE64}{{1,15}}+){{0,2}}+{_GAP}{{0,16}}+-----END [A-Z0-9 ]{{1,40}}+-----"
_NEXT = regex.compile(rf"(?P<gap>{_GAP}{{1,16}}+)(?={_BASE64}{{16}})|(?P<end>{_END})")
_HEADS = PatternSet([_HEAD])


class Block(NamedTuple):
    """A private key, or `MAX_BLOCK` characters of one."""

    start: int
    end: int


@dataclass(slots=True)
class _Open:
    """A key that is being read: `start` of what has not been told yet, and how far its units reach."""

    start: int
    at: int


class PrivateKeySearch:
    """One growing text, searched for private keys."""

    __slots__ = ("_heads", "_open")

    def __init__(self) -> None:
        self._heads = Scanner(_HEADS)
        self._open: _Open | None = None

    def advance(self, text: str, final: bool) -> tuple[list[Block], int]:
        """The blocks that have become certain, and the offset before which no further one starts."""
        blocks: list[Block] = []
        matches, floor = self._heads.advance(text, final)
        if self._open is not None:
            self._read(self._open, text, final, blocks)
        for match in matches:
            # A head can't stand within a body, so every key before this one has ended.
            self._open = _Open(match.start, match.end)
            self._read(self._open, text, final, blocks)
        return blocks, min(floor, self._open.start) if self._open is not None else floor

    def _read(self, key: _Open, text: str, final: bool, blocks: list[Block]) -> None:
        """Go through the key's units as far as they are certain."""
        while True:
            end, last = _unit(text, key.at, final)
            if end is None:
                return
            if end - key.start > MAX_BLOCK:
                blocks.append(Block(key.start, key.at))
                key.start = key.at
            key.at = end
            if last:
                blocks.append(Block(key.start, key.at))
                self._open = None
                return


def _unit(text: str, at: int, final: bool) -> tuple[int | None, bool]:
    """Where a body's unit that begins at `at` ends (None: not yet known), and whether it is the last one."""
    run = _RUN.match(text, at)
    end = run.end() if run else at
    if end == len(text) and end - at < _UNIT and not final:
        return None, False
    if end > at:
        return end, False
    following = _NEXT.match(text, at, partial=not final)
    if following is None:
        return at, True
    if following.partial:
        return None, False
    return following.end(), following.group("end") is not None
