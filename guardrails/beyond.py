"""Examining a text of which a beginning is decided already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol, runtime_checkable

from guardrails.guard import Answer, Examination, Job, Step
from guardrails.verdict import Finding


@runtime_checkable
class Counts(Protocol):
    """An examination that counts over the pieces of a text, and must know which ones are left out."""

    def begin(self, floor: int) -> None:
        """Pieces that end before `floor` are not answered for."""
        ...


class Beyond:
    """An examination that speaks of `text[floor:]` only, and sees what stands before it.

    What it finds across the floor counts from there on.
    """

    __slots__ = ("_floor", "_inner")

    def __init__(self, inner: Examination, floor: int) -> None:
        self._inner, self._floor = inner, floor
        if isinstance(inner, Counts):
            inner.begin(floor)

    def advance(self, text: str, final: bool) -> Step:
        """See `guardrails.guard.Examination`; `text` is all of it."""
        step = self._inner.advance(text, final)
        settled = max(step.settled, self._floor)
        return Step(settled, list(self._cut(step.findings)), step.scores, list(self._cut_jobs(step.jobs)))

    def _cut(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        for finding in findings:
            if finding.start >= self._floor:
                yield finding
            elif finding.end > self._floor:
                yield replace(finding, start=self._floor)

    def _cut_jobs(self, jobs: Iterable[Job]) -> Iterator[Job]:
        for job in jobs:
            if job.end > self._floor:
                yield self._job(job)

    def _job(self, job: Job) -> Job:
        def read(result: object) -> Answer:
            answer = job.read(result)
            return Answer(list(self._cut(answer.findings)), answer.scores)

        return Job(max(job.start, self._floor), job.end, job.servable, job.payload, read)
