"""Moderating one growing text: nothing goes out that a guard has not examined, nothing waits for longer.

For a text x let G(x) be what its guards make of the finished text (`guardrails.apply`). However x is cut
into chunks, and in whatever order jobs are answered,

1. what has been released is always a prefix of G(x), and at the end it is G(x);
2. no character is released before every guard has examined it, with the look-ahead that guard declares;
3. no more is held back than that takes.

A guard that fails or is late is no guard that passed: its region is withheld, or, where its `on_error`
says so, let through; either way the failure is on record.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from guardrails.apply import Change, clusters, replaces
from guardrails.beyond import Beyond
from guardrails.guard import Answer, Context, Examination, Guard, Job, JobError
from guardrails.in_json import examination
from guardrails.json_text import GrowingJson
from guardrails.parts import GuardReport
from guardrails.verdict import Action, Failure, Finding, Verdict

logger = structlog.get_logger(__name__)

_EVERYTHING = sys.maxsize


@dataclass(slots=True, eq=False)
class _Look:
    """One guard at this text.

    settled: what the guard itself is sure of, its unanswered jobs aside.
    """

    guard: Guard
    examination: Examination | None = None
    settled: int = 0
    pending: dict[PendingJob, None] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    seconds: float = 0.0

    def limit(self) -> int:
        """Up to where the text may go, as far as this guard is concerned."""
        if not self.pending:
            return self.settled
        return min(self.settled, min(pending.job.start for pending in self.pending))


@dataclass(frozen=True, slots=True, eq=False)
class PendingJob:
    """A job that must be run and handed back with `Moderator.resolve`. `deadline` is in seconds."""

    job: Job
    moderator: Moderator = field(repr=False)
    look: _Look = field(repr=False)
    started: float = field(repr=False)

    @property
    def deadline(self) -> float:
        return self.look.guard.deadline


@dataclass(frozen=True, slots=True)
class Release:
    """What may go out now.

    text:     the next piece of G(x).
    start:    offsets of the original text that the piece stands for, end exclusive.
    replaced: the spans within that were replaced.
    ended:    nothing follows: the text is finished, or what follows is withheld.
    withheld: why it is; None for a finished text.
    """

    text: str
    start: int
    end: int
    replaced: tuple[tuple[int, int], ...] = ()
    ended: bool = False
    withheld: Finding | Failure | None = None


class Moderator:
    """One text under the eyes of all its guards. Synchronous; the caller runs the jobs.

    For a whole text: `feed(text, final=True)`, run the jobs, `resolve` them, `release()`.
    """

    def __init__(self, guards: Sequence[Guard], context: Context) -> None:
        self._text = ""
        self._released = 0
        self._final = False
        self._ended = False
        self._changes: list[Finding] = []
        self._cut = _EVERYTHING
        self._withheld: Finding | Failure | None = None
        self._context = context
        self._paused = False
        self._looks = [_Look(guard) for guard in guards]
        self._json = self._open(self._looks)

    @property
    def held(self) -> int:
        """Characters that have arrived and are not released."""
        return 0 if self._ended else len(self._text) - self._released

    @property
    def ended(self) -> bool:
        """Whether the last piece has been released."""
        return self._ended

    def feed(self, text: str, final: bool = False) -> list[PendingJob]:
        """Take the next chunk; `final` says that nothing follows. Returns the jobs that it gives rise to."""
        if self._ended or self._final:
            return []
        self._final = final
        if self._paused:
            if not text:
                return []
            self._paused = False
            self._json = self._open([look for look in self._looks if look.examination is not None])
        self._text += text
        return self._advance_all(final)

    def pause(self) -> list[PendingJob]:
        """What has arrived is examined as a finished text, so that all of it may go out. Returns the jobs.

        Text that follows nevertheless is examined together with what stands before the pause, and what is
        found across it counts from there on.
        """
        if self._ended or self._final or self._paused:
            return []
        self._paused = True
        return self._advance_all(final=True)

    def resolve(self, pending: PendingJob, result: Any) -> None:
        """Take a job's result, or the `JobError` that stands for it. A second answer changes nothing."""
        look, job = pending.look, pending.job
        if pending not in look.pending:
            return
        del look.pending[pending]
        look.seconds += time.perf_counter() - pending.started
        try:
            if isinstance(result, JobError):
                raise result
            self._record(look, job.read(result), job.start)
        except Exception as error:
            self._fail(look, job.start, error.reason if isinstance(error, JobError) else "failed", error)

    def release(self) -> Release:
        """Everything that may go out now, and has not yet."""
        start = self._released
        if self._ended:
            return Release("", start, start, (), True, self._withheld)
        settled = min((look.limit() for look in self._looks), default=_EVERYTHING)
        settled = min(settled, len(self._text))
        cut_is_sure = self._cut <= settled
        limit = min(settled, self._cut)
        if self._changes:
            text, replaced = self._rewrite(limit, settled, cut_is_sure)
        else:
            text, replaced = self._text[start:limit], ()
            self._released = limit
        self._ended = cut_is_sure or (self._final and self._released >= len(self._text))
        withheld = self._withheld if cut_is_sure else None
        return Release(text, start, self._released, replaced, self._ended, withheld)

    @property
    def verdict(self) -> Verdict:
        """All that has been found so far, and which guards failed."""
        failures = [look.failure for look in self._looks if look.failure]
        return Verdict.of((f for look in self._looks for f in look.findings), failures)

    def reports(self) -> list[GuardReport]:
        """What each guard said; "skipped" where the text ended before the guard did."""
        return [self._report(look) for look in self._looks]

    def _open(self, looks: Iterable[_Look]) -> GrowingJson | None:
        """Let these guards begin to examine what follows. Returns the reader that they share, for JSON."""
        floor = len(self._text)
        json = GrowingJson() if self._context.channel == "tool_arguments" else None
        for look in looks:
            try:
                opened = examination(look.guard, self._context, json)
                look.examination = Beyond(opened, floor) if floor else opened
            except Exception as error:
                self._fail(look, floor, "failed", error)
                look.examination, look.settled = None, _EVERYTHING
        return json

    def _advance_all(self, final: bool) -> list[PendingJob]:
        jobs: list[PendingJob] = []
        for look in self._looks:
            if look.examination is not None:
                jobs += self._advance(look, look.examination, final)
        return jobs

    def _advance(self, look: _Look, examination: Examination, final: bool) -> Iterable[PendingJob]:
        started = time.perf_counter()
        before, jobs = look.settled, []
        try:
            step = examination.advance(self._text, final)
            if step.settled < (len(self._text) if final else before) or step.settled > len(self._text):
                raise ValueError("a step settled less than it must, or more than there is")
            if step.findings or step.scores:
                self._record(look, step, before)
            if step.jobs:
                if any(job.start < before for job in step.jobs):
                    raise ValueError("a job for a region that was settled")
                jobs = [PendingJob(job, self, look, started) for job in step.jobs]
                look.pending |= dict.fromkeys(jobs)
            look.settled = step.settled
        except Exception as error:
            self._fail(look, before, error.reason if isinstance(error, JobError) else "failed", error)
            look.examination = None  # it has nothing more to say; its jobs may still answer
            look.settled = _EVERYTHING
        look.seconds += time.perf_counter() - started
        return jobs

    def _record(self, look: _Look, answer: Answer | Any, floor: int) -> None:
        """Take findings and scores; refuse findings where the guard has said there are none."""
        for finding in answer.findings:
            if finding.start < floor or finding.end > len(self._text):
                raise ValueError("a finding outside of the region that was examined")
        for finding in answer.findings:
            look.findings.append(finding)
            if finding.action.withholds:
                self._withhold(finding.start, finding)
            elif replaces(finding):
                self._changes.append(finding)
        _merge_scores(look.scores, answer.scores)

    def _fail(self, look: _Look, at: int, reason: str, error: Exception) -> None:
        """Record a failure; where the guard fails closed, nothing from `at` on may pass."""
        # The type only: an exception's message may quote the text that it stumbled over.
        logger.warning("guard_failed", guard=look.guard.name, reason=reason, error=type(error).__name__)
        failure = Failure(look.guard.name, reason, look.guard.on_error)
        if look.failure is None or failure > look.failure:
            look.failure = failure
        if failure.action.withholds:
            self._withhold(at, failure)

    def _withhold(self, start: int, cause: Finding | Failure) -> None:
        if start < self._cut:
            self._cut, self._withheld = start, cause
        elif start == self._cut and self._withheld is not None and _weight(cause) > _weight(self._withheld):
            self._withheld = cause

    def _rewrite(
        self, limit: int, settled: int, cut_is_sure: bool
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text up to `limit` with its changes; a cluster that may still grow holds back what follows."""
        changes = self._changes
        if cut_is_sure:
            changes = [finding for finding in changes if finding.start < self._cut]
        at, pieces, replaced = self._released, [], []
        for change in clusters(changes):
            if change.start >= limit:
                break
            if change.end > settled and not cut_is_sure:
                limit = change.start
                break
            pieces += [self._text[at : change.start], self._replacement(change)]
            replaced.append((change.start, change.end))
            at = change.end
        if at < limit:
            pieces.append(self._text[at:limit])
            at = limit
        self._released = at
        self._changes = [finding for finding in self._changes if finding.start >= at]
        return "".join(pieces), tuple(replaced)

    def _replacement(self, change: Change) -> str:
        """What stands in the place of `change`; within JSON such that it stays JSON."""
        text = change.replacement(self._text)
        if self._json is None:
            return text
        self._json.grow(self._text, self._final or self._paused)
        return self._json.encode(change.start, text)

    def _report(self, look: _Look) -> GuardReport:
        action = max((f.action for f in look.findings), default=Action.ALLOW)
        done = self._final and not look.pending
        return GuardReport(
            guard=look.guard.name,
            state="failed" if look.failure else "finished" if done or action.withholds else "skipped",
            action=max(action, look.failure.action) if look.failure else action,
            score=max([*look.scores.values(), *(f.score for f in look.findings)], default=0.0),
            categories=look.scores,
            findings=tuple(sorted(look.findings)),
            ms=round(look.seconds * 1000, 3),
            failure=look.failure.reason if look.failure else None,
        )


def _weight(cause: Finding | Failure) -> tuple[object, ...]:
    """Which of several causes at one place is named: the strongest; a finding before a failure."""
    kind = cause.entity_type if isinstance(cause, Finding) else cause.reason
    return (cause.action, isinstance(cause, Finding), cause.guard, kind)


def _merge_scores(scores: dict[str, float], new: Mapping[str, float]) -> None:
    for category, score in new.items():
        if score > scores.get(category, -1.0):
            scores[category] = score
