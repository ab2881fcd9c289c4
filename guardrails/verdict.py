"""What guards say: actions, spans, findings, and the lattice in which verdicts are merged.

Span fields carry Presidio's names (`entity_type, start, end, score`). A finding never holds the text
that it was found in, so that it can be logged, counted and returned as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum


class Action(IntEnum):
    """What is done about a finding; the order is the order of strength, and merging takes the maximum."""

    ALLOW = 0
    REDACT = 1
    REWRITE = 2
    ESCALATE = 3
    BLOCK = 4

    @property
    def withholds(self) -> bool:
        """True where the text from the finding on must not go out (a person or a refusal takes over)."""
        return self >= Action.ESCALATE


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that one guard found in one text.

    `start` and `end` are offsets in code points into the text as it was received, end exclusive.
    `replacement` is what a REDACT or REWRITE finding puts in the span's place; with `mask` the request's
    own vault names the placeholder instead, and the original is put back in the reply. `log` asks for a
    line in the gateway's log, whatever the action. `penalty` is a soft constraint: what a candidate reply
    with this finding loses when replies are ranked.
    """

    start: int
    end: int
    guard: str
    entity_type: str
    score: float
    action: Action = Action.ALLOW
    replacement: str | None = None
    mask: bool = False
    log: bool = False
    penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"a finding's span must satisfy 0 <= start <= end, got {self.start}..{self.end}")

    def __lt__(self, other: Finding) -> bool:
        """Findings sort by their place in the text; the order is total, and agrees with equality."""
        return self._order() < other._order()

    def _order(self) -> tuple[object, ...]:
        what = (self.guard, self.entity_type, self.score, self.action)
        # None compares with no text.
        replacement = (self.replacement is not None, self.replacement or "")
        return (self.start, self.end, *what, *replacement, self.mask, self.log, self.penalty)


@dataclass(frozen=True, slots=True, order=True)
class Failure:
    """A guard that could not answer. Never the same as a guard that flagged, nor as one that passed."""

    guard: str
    reason: str
    action: Action = Action.BLOCK


@dataclass(frozen=True, slots=True)
class Verdict:
    """The union of what was found, and the strongest action that follows from it.

    `merge` is commutative, associative and idempotent, with `Verdict()` as its identity: guards may
    answer in any order, and an answer that arrives twice changes nothing.
    """

    findings: frozenset[Finding] = frozenset()
    failures: frozenset[Failure] = field(default=frozenset())

    @property
    def action(self) -> Action:
        actions = [f.action for f in self.findings] + [f.action for f in self.failures]
        return max(actions, default=Action.ALLOW)

    def merge(self, other: Verdict) -> Verdict:
        return Verdict(self.findings | other.findings, self.failures | other.failures)

    @classmethod
    def of(cls, findings: Iterable[Finding] = (), failures: Iterable[Failure] = ()) -> Verdict:
        return cls(frozenset(findings), frozenset(failures))
