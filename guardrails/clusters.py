"""Overlapping matches of several expressions, grouped: each group is complete exactly when it can't grow.

A group is a connected set of overlapping matches, so it depends on the text alone. Presidio removes
duplicates among overlapping results only, which is why a group is what a worker must see at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import regex

from guardrails.scan import Match, PatternSet, Scanner

# For patterns that are `quick`: no match gets beyond its first run of these characters without a trigger.
_TRIGGER = regex.compile(r"[\d@:(\[（［+＋]")
_NOT_IN_RUN = regex.compile(r"(?r)[^\w!#$%&'*+\-/=?^`{|}~.]")


class ClusterSearch:
    """One growing text, searched for groups of overlapping matches.

    after: per pattern, how many characters after a match must have arrived, or be known not to come.
    quick: says of all patterns that a match's part before its first digit, `@`, `:`, opening bracket or plus
        holds nothing but word characters and the signs of an e-mail's local part. Prose without any of
        those is then not searched at all; what is held back of it is the current word.
    """

    __slots__ = ("_after", "_pending", "_quick", "_quiet", "_scanner")

    def __init__(self, patterns: PatternSet, after: Sequence[int], quick: bool) -> None:
        self._scanner = Scanner(patterns)
        self._after = after
        self._quick = quick
        self._quiet = 0  # up to here nothing can begin any more, whether or not the scanner has looked
        self._pending: list[Match] = []

    def fork(self) -> ClusterSearch:
        """A search in the same state, for a text that agrees with this one so far."""
        other = ClusterSearch.__new__(ClusterSearch)
        other._scanner = self._scanner.fork()
        other._after, other._quick, other._quiet = self._after, self._quick, self._quiet
        other._pending = self._pending.copy()
        return other

    def advance(self, text: str, final: bool) -> tuple[list[list[Match]], int]:
        """The groups that are complete now, in order, and the offset before which no further one starts."""
        if self._quick and not self._pending and not _TRIGGER.search(text, self._quiet):
            separator = None if final else _NOT_IN_RUN.search(text, self._quiet)
            if final:
                self._quiet = len(text)
            elif separator is not None:
                self._quiet = separator.end()
            return [], self._quiet
        matches, floor = self._scanner.advance(text, final)
        floor = max(floor, self._quiet)
        self._pending = sorted([*self._pending, *matches], key=lambda match: (match.start, match.end))
        groups, settled = self._complete(len(text), floor, final)
        self._quiet = settled
        return groups, settled

    def _complete(self, length: int, floor: int, final: bool) -> tuple[list[list[Match]], int]:
        groups: list[list[Match]] = []
        while self._pending:
            start, end = self._pending[0].start, 0
            count = needed = 0
            for match in self._pending:
                if count and match.start >= end:
                    break
                count += 1
                end = max(end, match.end)
                needed = max(needed, match.end + self._after[match.pattern])
            if not final and (floor < end or length < needed):
                return groups, min(floor, start)
            groups.append(self._pending[:count])
            del self._pending[:count]
        return groups, floor
