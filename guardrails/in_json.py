"""Guards at a tool call's arguments: they are shown what the JSON says, and are understood in its terms.

What a guard examines is the decoded view of `guardrails.json_text`, one text for all of the arguments. Its
findings are told in the offsets of the raw text; one that replaces something is cut at the values' edges, and
grows to the whole of a number. The replacement is encoded where it is put in (`GrowingJson.encode`).

Arguments that turn out to be no JSON are examined twice: the view goes on to their end, and from the place
where it is certain on, what the guard finds in the raw text counts as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from guardrails.apply import replaces
from guardrails.beyond import Beyond
from guardrails.guard import Answer, Context, Examination, Guard, Job, ReadsRaw, Step
from guardrails.json_text import GrowingJson, Piece
from guardrails.verdict import Finding


def examination(guard: Guard, context: Context, reader: GrowingJson | None = None) -> Examination:
    """How `guard` examines a text; `reader` may be shared by all guards at the same text."""
    if context.channel != "tool_arguments" or isinstance(guard, ReadsRaw):
        return guard.examine(context)
    return JsonExamination(guard, context, reader or GrowingJson())


def spread(finding: Finding, pieces: Iterable[Piece]) -> Iterator[Finding]:
    """A replacing finding, at the pieces of the raw text that it is about: the first shows its replacement,
    and so does every scalar, which can't be empty."""
    for index, piece in enumerate(pieces):
        gone = index > 0 and not piece.scalar and not finding.mask
        yield replace(
            finding, start=piece.start, end=piece.end, replacement="" if gone else finding.replacement
        )


class JsonExamination:
    """A tool call's arguments under examination by a guard that reads texts."""

    __slots__ = ("_context", "_guard", "_raw", "_reader", "_told", "_view", "_waiting", "_waiting_jobs")

    def __init__(self, guard: Guard, context: Context, reader: GrowingJson) -> None:
        self._guard, self._context, self._reader = guard, context, reader
        self._view = guard.examine(context)
        self._raw: Beyond | None = None
        self._waiting: list[Finding] = []
        self._waiting_jobs: list[Job] = []
        self._told: set[Finding] = set()

    def advance(self, text: str, final: bool) -> Step:
        """See `guardrails.guard.Examination`; `text` is the raw text."""
        reader = self._reader
        reader.grow(text, final)
        step = self._view.advance(reader.view, final)
        findings, jobs = [*self._waiting, *step.findings], [*self._waiting_jobs, *step.jobs]
        # A number that may go on can't be replaced yet, and so nothing is said that might be about it.
        unsure = reader.unsure
        self._waiting = [finding for finding in findings if finding.end > unsure and replaces(finding)]
        self._waiting_jobs = [job for job in jobs if job.end > unsure]
        waiting = [*(one.start for one in self._waiting), *(job.start for job in self._waiting_jobs)]
        first = min([step.settled, *waiting])
        settled = len(text) if final else reader.settled(first)
        sure = [finding for finding in findings if finding.end <= unsure or not replaces(finding)]
        placed = [one for finding in sure for one in self._place(finding)]
        handed = [self._job(job) for job in jobs if job.end <= unsure]
        scores = step.scores
        if reader.broken is not None and reader.broken < len(text):
            raw = self._advance_raw(reader.broken, text, final)
            settled = min(settled, raw.settled)
            placed += raw.findings
            handed += [self._told_once(job, job.start, job.end, _as_it_is) for job in raw.jobs]
            scores = _highest(scores, raw.scores)
        return Step(settled, self._new(placed), scores, handed)

    def _advance_raw(self, broken: int, text: str, final: bool) -> Step:
        if self._raw is None:
            self._raw = Beyond(self._guard.examine(self._context), broken)
        return self._raw.advance(text, final)

    def _place(self, finding: Finding) -> Iterator[Finding]:
        """`finding` in the view as findings in the raw text; none where it would replace what isn't there."""
        reader = self._reader
        if replaces(finding):
            if finding.end > reader.unsure:
                raise ValueError("an answer about more than had arrived when it was asked for")
            yield from spread(finding, reader.pieces(finding.start, finding.end))
        else:
            start = reader.raw_start(finding.start)
            yield replace(finding, start=start, end=max(start, reader.raw_end(finding.end)))

    def _job(self, job: Job) -> Job:
        start, end = self._reader.settled(job.start), self._reader.raw_end(job.end)
        return self._told_once(job, start, max(start, end), self._place)

    def _told_once(
        self, job: Job, start: int, end: int, place: Callable[[Finding], Iterable[Finding]]
    ) -> Job:
        """`job` for `raw[start:end]`, its findings brought there by `place`."""

        def read(result: object) -> Answer:
            answer = job.read(result)
            return Answer(self._new(one for found in answer.findings for one in place(found)), answer.scores)

        return Job(start, end, job.servable, job.payload, read)

    def _new(self, findings: Iterable[Finding]) -> Sequence[Finding]:
        """What both readings find is told once."""
        new = [finding for finding in dict.fromkeys(findings) if finding not in self._told]
        self._told.update(new)
        return new


def _as_it_is(finding: Finding) -> Sequence[Finding]:
    return (finding,)


def _highest(scores: Mapping[str, float], others: Mapping[str, float]) -> Mapping[str, float]:
    both = scores.keys() | others.keys()
    return {name: max(scores.get(name, -1.0), others.get(name, -1.0)) for name in both}
