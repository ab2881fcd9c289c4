"""The decoded view of a growing JSON text, and the way back from it into the raw text."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Piece(NamedTuple):
    """`raw[start:end]`: part of a string's inside, or (`scalar`) a whole number, true, false or null."""

    start: int
    end: int
    scalar: bool

    def encode(self, replacement: str) -> str:
        """`replacement` as it may be put in this piece's place."""
        quoted = json.dumps(replacement, ensure_ascii=False)
        return quoted if self.scalar else quoted[1:-1]


@dataclass(slots=True, eq=False)
class Token:
    """A string's inside, a scalar, or what is no JSON: where it stands in the raw text and in the view."""

    start: int
    end: int
    view_start: int
    view_end: int
    scalar: bool


class _Run(NamedTuple):
    """Characters of the view that agree with the raw text (`end` is None), or some that stand as a whole
    for `raw[start:end]`: an escape's, or those that are put between values."""

    start: int
    end: int | None


class DecodedView:
    """A text that grows at its end. `text` may be read between calls of `flush`."""

    def __init__(self) -> None:
        self.text = ""
        self.length = 0  # of the text, what is not flushed included
        self._new: list[str] = []
        self._tokens: list[Token] = []
        self._token_ends: list[int] = []  # in the raw text, of all tokens but the last
        self._token_view_ends: list[int] = []
        self._runs: list[_Run] = []
        self._run_starts: list[int] = []  # in the raw text
        self._run_views: list[int] = []
        self._run_goes_on_at = -1  # in the raw text, where a run that agrees with it may go on

    def begin(self, at: int, scalar: bool) -> Token:
        """A token begins at the raw text's offset `at`."""
        if self._tokens:
            self._token_ends.append(self._tokens[-1].end)
            self._token_view_ends.append(self._tokens[-1].view_end)
        token = Token(at, at, self.length, self.length, scalar)
        self._tokens.append(token)
        return token

    def show(self, text: str, start: int, end: int | None = None) -> None:
        """The last token goes on with `text`: the raw text at `start`, or what `raw[start:end]` means."""
        if end is not None or self._run_goes_on_at != start:
            self._run(start, end)
        self._append(text)
        token = self._tokens[-1]
        token.end, token.view_end = start + len(text) if end is None else end, self.length
        self._run_goes_on_at = token.end if end is None else -1

    def separate(self, text: str, start: int, end: int) -> None:
        """`text` of ours is shown for `raw[start:end]`, which is part of no token and may be empty."""
        self._run(start, end)
        self._append(text)
        self._run_goes_on_at = -1

    def flush(self) -> None:
        """Bring `text` up to date."""
        if self._new:
            self.text += "".join(self._new)
            self._new.clear()

    def raw_start(self, view: int) -> int | None:
        """Where what is shown at `view` begins in the raw text; None at the view's end."""
        if view >= self.length:
            return None
        at = bisect_right(self._run_views, view) - 1
        run = self._runs[at]
        return run.start + view - self._run_views[at] if run.end is None else run.start

    def raw_end(self, view: int) -> int:
        """Where what is shown before `view` ends in the raw text."""
        if view <= 0:
            return 0
        at = bisect_right(self._run_views, view - 1) - 1
        run = self._runs[at]
        return run.start + view - self._run_views[at] if run.end is None else run.end

    def around(self, view: int) -> Token | None:
        """The token that begins before `view` and ends after it."""
        at = bisect_right(self._token_view_ends, view)
        token = self._tokens[at] if at < len(self._tokens) else None
        return token if token and token.view_start < view < token.view_end else None

    def pieces(self, view_start: int, view_end: int) -> Iterator[Piece]:
        """What stands for `view[view_start:view_end]`; nothing for what is put between values."""
        for token in self._tokens_from(bisect_right(self._token_view_ends, view_start)):
            first, last = max(view_start, token.view_start), min(view_end, token.view_end)
            if token.view_start >= view_end:
                return
            if first < last and token.scalar:
                yield Piece(token.start, token.end, True)
            elif first < last:
                yield Piece(self.raw_start(first) or 0, self.raw_end(last), False)

    def raw_pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The parts of `raw[start:end]` that may be replaced; an escape is taken whole."""
        for token in self._tokens_from(bisect_right(self._token_ends, start)):
            first, last = max(start, token.start), min(end, token.end)
            if token.start >= end:
                return
            if first < last and token.scalar:
                yield Piece(token.start, token.end, True)
            elif first < last:
                yield Piece(self._whole_from(first), self._whole_to(last), False)

    def _tokens_from(self, index: int) -> Iterator[Token]:
        return (self._tokens[at] for at in range(index, len(self._tokens)))

    def _whole_from(self, raw: int) -> int:
        run = self._runs[bisect_right(self._run_starts, raw) - 1]
        return raw if run.end is None else run.start

    def _whole_to(self, raw: int) -> int:
        run = self._runs[bisect_left(self._run_starts, raw) - 1]
        return raw if run.end is None else run.end

    def _run(self, start: int, end: int | None) -> None:
        self._runs.append(_Run(start, end))
        self._run_starts.append(start)
        self._run_views.append(self.length)

    def _append(self, text: str) -> None:
        self._new.append(text)
        self.length += len(text)
