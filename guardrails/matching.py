"""Searching a growing text for a guard's patterns: as it is, and as a reader takes it.

Look-alikes and invisible characters hide nothing, because from the first character on that isn't its own
normal form (see `guardrails.normalize`) the text is searched in that form too. Both searches count: the
normal form joins letters that the text keeps apart, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from guardrails.build import GuardEnvironment
from guardrails.guard import Scope
from guardrails.normalize import GrowingNormal, charwise
from guardrails.remedy import Remedy
from guardrails.scan import Match, PatternSet, Scanner
from guardrails.verdict import Action, Finding
from policies.guards import GuardBase


class SearchingGuard:
    """What guards have in common that search texts as they arrive; see `guardrails.guard.Guard`."""

    scope: Scope = "pattern"
    servables: frozenset[str] = frozenset()

    def __init__(self, spec: GuardBase, env: GuardEnvironment, remedy: Remedy) -> None:
        self.name = spec.title
        self.on_error = env.on_error(spec)
        self.deadline = spec.deadline_ms / 1000
        self.remedy = remedy

    @property
    def action(self) -> Action:
        return self.remedy.action

    @property
    def changes_text(self) -> bool:
        return self.remedy.changes_text


class Found(NamedTuple):
    """A match: `text` is what was matched, in the form in which it was searched, and `span` tells where a
    part of it stands in the text as it was received."""

    pattern: int
    text: str
    at: int
    normal: GrowingNormal | None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The original offsets of `self.text[start:end]`, which isn't empty."""
        if self.normal is None:
            return self.at + start, self.at + end
        return self.normal.span(self.at + start, self.at + end)

    @property
    def whole(self) -> tuple[int, int]:
        return self.span(0, len(self.text))


class FormSearch:
    """One growing text, searched in both forms; without `normalize` only as it is."""

    __slots__ = ("_normal", "_normal_scanner", "_normalize", "_scanner", "_seen")

    def __init__(self, patterns: PatternSet, *, normalize: bool = True) -> None:
        self._scanner = Scanner(patterns)
        self._normalize = normalize
        self._normal: GrowingNormal | None = None
        self._normal_scanner: Scanner | None = None
        self._seen = 0

    def advance(self, text: str, final: bool) -> tuple[list[Found], int]:
        """What has become certain, and the offset before which nothing else will begin."""
        if self._normalize:
            self._grow(text)
        matches, settled = self._scanner.advance(text, final)
        found = [_found(match, text, None) for match in matches]
        if self._normal is not None and self._normal_scanner is not None:
            matches, position = self._normal_scanner.advance(self._normal.text, final)
            found += [_found(match, self._normal.text, self._normal) for match in matches]
            settled = min(settled, self._normal.original(position))
        return found, settled

    def _grow(self, text: str) -> None:
        new = text[self._seen :]
        if self._normal is None and not new.isascii() and charwise(new).offsets is not None:
            self._normal = GrowingNormal(text[: self._seen])
            self._normal_scanner = self._scanner.fork()
        if self._normal is not None:
            self._normal.grow(text)
        self._seen = len(text)


def _found(match: Match, text: str, normal: GrowingNormal | None) -> Found:
    return Found(match.pattern, text[match.start : match.end], match.start, normal)


class Outbox:
    """Findings on their way out: each once, and none that ends where others may still begin.

    Patterns become sure at different times. A finding that reaches beyond what all have settled waits, and
    nothing after its start is settled until then.
    """

    __slots__ = ("_known", "_waiting")

    def __init__(self) -> None:
        self._known: set[Finding] = set()
        self._waiting: list[Finding] = []

    def put(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            if finding not in self._known:
                self._known.add(finding)
                self._waiting.append(finding)

    def take(self, settled: int) -> tuple[int, list[Finding]]:
        """How far all is settled, and the findings up to there that are new."""
        if not self._waiting:
            return settled, []
        for finding in sorted(self._waiting, key=lambda finding: finding.end, reverse=True):
            if finding.start < settled < finding.end:
                settled = finding.start
        ready = [finding for finding in self._waiting if finding.end <= settled]
        self._waiting = [finding for finding in self._waiting if finding.end > settled]
        return settled, ready
