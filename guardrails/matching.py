"""Examinations that search for expressions: what `guardrails.scan` finds, as findings and settled offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from guardrails.guard import Step
from guardrails.scan import Match, PatternSet, Scanner
from guardrails.verdict import Finding

MatchReader = Callable[[str, Match], Iterable[Finding]]
"""What a match in a text means: findings within the match's span, told by the span's text alone."""


class MatchExamination:
    """One text, searched for a guard's patterns; `read` turns matches into findings."""

    __slots__ = ("_pending", "_read", "_scanner")

    def __init__(self, patterns: PatternSet, read: MatchReader) -> None:
        self._scanner = Scanner(patterns)
        self._read = read
        self._pending: list[Finding] = []

    def advance(self, text: str, final: bool) -> Step:
        matches, floor = self._scanner.advance(text, final)
        for match in matches:
            self._pending += self._read(text, match)
        if not self._pending:
            return Step(floor)
        settled = settle(self._pending, floor)
        ready = [finding for finding in self._pending if finding.end <= settled]
        self._pending = [finding for finding in self._pending if finding.end > settled]
        return Step(settled, ready)


def settle(pending: Iterable[Finding], floor: int) -> int:
    """The furthest offset up to `floor` that lies within none of `pending`.

    Patterns become sure at different times: a finding that reaches beyond what another pattern has settled
    waits for it, and nothing after the finding's start is settled until then.
    """
    for finding in sorted(pending, key=lambda finding: finding.end, reverse=True):
        if finding.start < floor < finding.end:
            floor = finding.start
    return floor
