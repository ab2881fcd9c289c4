"""Guards for the stream contract's tests: real examinations over real text, whose answers are scripted by
the text itself (words that stand for findings, scores and failures), in the shapes that guards come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from hypothesis import settings

from guardrails.guard import Answer, Context, Job, JobError, Scope, Step
from guardrails.scan import Match, PatternSet, Scanner, StreamPattern
from guardrails.segments import Segmenter
from guardrails.verdict import Action, Finding


def cases(number: int) -> settings:
    """So many cases in the normal profile, and as many times more as a longer profile asks for."""
    return settings(max_examples=number * settings().max_examples // 100)


@cache
def compiled(source: str) -> StreamPattern:
    return StreamPattern.compile(source, source)


@dataclass(frozen=True)
class Rule:
    """Whatever `source` matches becomes a finding."""

    source: str
    action: Action
    replacement: str | None = None


@dataclass
class RuleGuard:
    """`rules` over the text, searched for in one of the ways that guards work.

    pattern: as the text arrives; segment: by a job for each segment; document: by one job at the end.
    Compiled when first used, not while hypothesis draws: the `regex` package uses `random` to make room among
    the expressions that it remembers.
    A segment or document with the word `fail_on` in it fails.
    """

    name: str
    rules: Sequence[Rule]
    scope: Scope = "pattern"
    on_error: Action = Action.BLOCK
    fail_on: str = ""
    deadline: float = 1.0
    changes_text: bool = True
    longest: int = 12

    @cached_property
    def patterns(self) -> PatternSet:
        return PatternSet([compiled(rule.source) for rule in self.rules])

    @property
    def action(self) -> Action:
        return max((rule.action for rule in self.rules), default=Action.ALLOW)

    @property
    def servables(self) -> frozenset[str]:
        return frozenset() if self.scope == "pattern" else frozenset({self.name})

    def examine(self, context: Context) -> Any:
        return _Patterns(self) if self.scope == "pattern" else _Jobs(self)

    def finding(self, rule: Rule, start: int, end: int) -> Finding:
        return Finding(start, end, self.name, "X", 1.0, rule.action, rule.replacement)

    def predict(self, payload: tuple[int, str]) -> list[tuple[int, int, int]]:
        """What the servable answers: for a region's start and text, (rule, start, end)."""
        start, text = payload
        if self.fail_on and self.fail_on in text:
            raise JobError("failed", "asked for")
        return [
            (index, start + match.start(), start + match.end())
            for index, rule in enumerate(self.rules)
            for match in compiled(rule.source).plain.finditer(text)
            if match.end() > match.start()
        ]


class _Patterns:
    def __init__(self, guard: RuleGuard) -> None:
        self.guard = guard
        self.scanner = Scanner(guard.patterns)

    def advance(self, text: str, final: bool) -> Step:
        matches, settled = self.scanner.advance(text, final)
        if self.guard.fail_on and self.guard.fail_on in text:
            raise JobError("failed", "asked for")
        return Step(settled, [self.read(match) for match in matches])

    def read(self, match: Match) -> Finding:
        return self.guard.finding(self.guard.rules[match.pattern], match.start, match.end)


class _Jobs:
    def __init__(self, guard: RuleGuard) -> None:
        self.guard = guard
        self.segmenter = Segmenter(3, guard.longest)
        self.settled = 0

    def advance(self, text: str, final: bool) -> Step:
        if self.guard.scope == "segment":
            spans = self.segmenter.advance(text, final)
        else:
            spans = [(0, len(text))] if final and text else []
        jobs = [Job(s, e, self.guard.name, (s, text[s:e]), self.read) for s, e in spans]
        self.settled = spans[-1][1] if spans else self.settled
        return Step(self.settled, jobs=jobs)

    def read(self, result: list[tuple[int, int, int]]) -> Answer:
        found = [self.guard.finding(self.guard.rules[i], s, e) for i, s, e in result]
        return Answer(found, {"x": float(len(found))})
