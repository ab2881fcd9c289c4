"""Finding expressions in a text that is still growing: exactly what a search of the whole text will find.

`Scanner` gives, piece by piece, the matches that `regex.finditer` gives for the finished text (leftmost,
not overlapping, each expression by itself; empty matches are ignored), and the offset up to which no more
can come. It holds back only a suffix from which some expression's search still depends on what follows
(see `guardrails.expressions`), for ordinary prose the current word.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import regex

from guardrails.expressions import Expression, PatternError, analyse, watching
from guardrails.guard import JobError

__all__ = ["Match", "PatternError", "PatternSet", "Scanner", "StreamPattern"]

# A search may take this long, in seconds, plus so much per character; then it counts as runaway.
_TIMEOUT = 0.05
_TIMEOUT_PER_CHARACTER = 2e-6
# Up to so many characters one joint search beats one per expression (it has no literal to skip ahead by).
_JOINT_WINDOW = 32
# Characters that a search looks at first; twice as many whenever that isn't enough.
_WATCH_WINDOW = 256


class Match(NamedTuple):
    """`pattern` is the index into the scanner's patterns; `start` and `end` are offsets, end exclusive."""

    pattern: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class StreamPattern:
    """A named expression, ready to be searched for in growing texts."""

    name: str
    expression: Expression = field(repr=False)
    plain: regex.Pattern[str] = field(repr=False)
    watching: regex.Pattern[str] = field(repr=False)

    @classmethod
    def compile(cls, source: str, name: str) -> StreamPattern:
        """Compile `source`, in the syntax of the `regex` package (version 0 behaviour).

        Raises `PatternError`, with the column, for a syntax error and for constructs whose outcome can't
        be decided on a growing text.
        """
        expression = analyse(source)
        return cls(
            name, expression, _compile(expression.plain, source), _compile(expression.watching, source)
        )


def _compile(expression: str, source: str) -> regex.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return regex.compile(expression, regex.VERSION0)
    except (regex.error, Warning, OverflowError, RecursionError) as error:
        raise PatternError(str(error), source) from error


class PatternSet:
    """Patterns that are searched for together. Immutable; shared by all scanners of a guard."""

    def __init__(self, patterns: Sequence[StreamPattern]) -> None:
        self.patterns = tuple(patterns)
        self._joint = self._join()

    def _join(self) -> regex.Pattern[str] | None:
        """One watching form for all, where the expressions can be joined."""
        if len(self.patterns) == 1:
            return self.patterns[0].watching
        expressions = [pattern.expression for pattern in self.patterns]
        if not expressions or not all(expression.joinable for expression in expressions):
            return None
        either = "|".join(f"(?{e.flags}:{e.hold})" for e in expressions)
        return regex.compile(watching(either), regex.VERSION0)

    @property
    def joint(self) -> regex.Pattern[str] | None:
        """Watches for all patterns at once; None where that can't be."""
        return self._joint


class Scanner:
    """One growing text, searched for the patterns of a set."""

    __slots__ = ("_floor", "_furthest", "_next", "_set")

    def __init__(self, patterns: PatternSet) -> None:
        self._set = patterns
        self._next = [0] * len(patterns.patterns)  # where each pattern's search goes on
        self._furthest = 0  # the largest of them
        self._floor = 0  # no unreported match starts before it

    def fork(self) -> Scanner:
        """A scanner in the same state, for a text that agrees with this one so far."""
        other = Scanner(self._set)
        other._next = self._next.copy()
        other._furthest, other._floor = self._furthest, self._floor
        return other

    def advance(self, text: str, final: bool) -> tuple[list[Match], int]:
        """The matches that have become certain, and the offset before which no further one will start.

        `text` is all that has arrived; each call's text begins with the last call's. Raises `JobError`
        ("timeout") when a search runs away.
        """
        timeout = _TIMEOUT + len(text) * _TIMEOUT_PER_CHARACTER
        try:
            if final:
                matches = self._finish(text, timeout)
                self._floor = len(text)
            elif self._nothing_new(text, timeout):
                return [], self._floor
            else:
                matches = self._search_each(text, timeout)
        except TimeoutError as error:
            raise JobError("timeout", "an expression took too long to search for") from error
        return matches, self._floor

    def _nothing_new(self, text: str, timeout: float) -> bool:
        """Whether one joint search shows that no match has become certain; moves the floor if so."""
        joint, floor = self._set.joint, self._floor
        if joint is None or floor < self._furthest or len(text) - floor > _JOINT_WINDOW:
            return False
        start, end = _watch(joint, text, floor, timeout)
        if end >= 0:
            return False
        self._floor = start
        return True

    def _search_each(self, text: str, timeout: float) -> list[Match]:
        matches: list[Match] = []
        floor = len(text)
        for index, pattern in enumerate(self._set.patterns):
            at = max(self._next[index], self._floor)
            while True:
                start, end = _watch(pattern.watching, text, at, timeout)
                if end < 0 or start >= len(text):
                    break
                if end > start:
                    matches.append(Match(index, start, end))
                at = self._next[index] = max(end, start + 1)
            floor = min(floor, start)
        self._furthest = max(self._next, default=0)
        self._floor = max(self._floor, floor)
        return matches

    def _finish(self, text: str, timeout: float) -> list[Match]:
        matches: list[Match] = []
        for index, pattern in enumerate(self._set.patterns):
            at = max(self._next[index], self._floor)
            while at < len(text):
                match = pattern.plain.search(text, at, timeout=timeout)
                if match is None:
                    break
                start, at = match.span()
                if at > start:
                    matches.append(Match(index, start, at))
                else:
                    at += 1
        return matches


def _watch(watching: regex.Pattern[str], text: str, at: int, timeout: float) -> tuple[int, int]:
    """The first match from `at` on that is certain, as (start, end); where before it there is a start that
    is still open, or where there is neither, that start or the end of the text, and -1."""
    # A partial search looks for a whole match up to the end first: many of them over a long text would take
    # time quadratic in it. What is certain when the text has arrived up to `stop` stays so.
    window = _WATCH_WINDOW
    while True:
        stop = min(len(text), at + window)
        seen = watching.search(text, at, stop, partial=True, timeout=timeout)
        start, end = (stop, -1) if seen is None else (seen.start(), seen.end(watching.groups))
        if stop == len(text) or (end >= 0 and start < stop):
            return start, end
        at, window = start, 2 * window
