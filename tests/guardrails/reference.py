"""What a moderated text must be, by other means than the moderator's: slow, and plainly the rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from hypothesis import strategies as st

from guardrails.guard import JobError
from guardrails.segments import Segmenter
from guardrails.stream import Moderator, PendingJob
from guardrails.verdict import Action, Finding
from tests.guardrails.scripted import RuleGuard

Encode = Callable[[int, str], str]


def moderated(guards: Sequence[RuleGuard], text: str, pauses: Iterable[int] = ()) -> str:
    """G(text), where the text seemed to have ended at `pauses`."""
    findings: list[Finding] = []
    cuts = [len(text)]
    floor = 0
    for end in sorted({*pauses, len(text)}):
        new, failed = found(guards, text[:end], floor)
        findings += new
        cuts += failed
        floor = end
    return merged(text, findings, min(cuts))


def found(guards: Iterable[RuleGuard], text: str, floor: int = 0) -> tuple[list[Finding], list[int]]:
    """What `guards` have to say about the finished `text` from `floor` on, and where those fail that fail
    closed."""
    findings: list[Finding] = []
    failed: list[int] = []
    for guard in guards:
        own, regions = _found(guard, text)
        findings += [replace(f, start=max(f.start, floor)) for f in own if f.end > floor]
        if guard.on_error.withholds:
            failed += [max(start, floor) for start, end in regions if end > floor]
    return findings, failed


def _found(guard: RuleGuard, text: str) -> tuple[list[Finding], list[tuple[int, int]]]:
    if guard.scope == "pattern":
        regions = [(0, len(text))]
    elif guard.scope == "segment":
        regions = Segmenter(3, guard.longest).advance(text, True)
    else:
        regions = [(0, len(text))] if text else []
    findings, failed = [], []
    for start, end in regions:
        try:
            answers = guard.predict((start, text[start:end]))
        except JobError:
            failed.append((start, end))
        else:
            findings += [guard.finding(guard.rules[rule], s, e) for rule, s, e in answers]
    return findings, failed


def _as_it_is(at: int, shown: str) -> str:
    return shown


def merged(text: str, findings: Iterable[Finding], cut: int, encode: Encode = _as_it_is) -> str:
    """What `findings` make of `text`, of which nothing from `cut` on may pass, character by character.

    encode: what stands in a replacement's place, from where it stands and what it shows.
    """
    findings = list(findings)
    cut = min([cut, *(f.start for f in findings if f.action.withholds)])
    changing = [f for f in findings if Action.REDACT <= f.action <= Action.REWRITE and f.start < cut]
    out, at = [], 0
    while at < cut:
        group = [f for f in changing if f.start == at]
        if not group:
            out.append(text[at])
            at += 1
            continue
        end = max(f.end for f in group)
        while more := [f for f in changing if at < f.start < end and f not in group]:
            group += more
            end = max(f.end for f in group)
        best = max(
            group,
            key=lambda f: (
                f.action,
                f.end - f.start,
                -f.start,
                f.guard,
                f.replacement is not None,
                f.replacement or "",
            ),
        )
        out.append(encode(at, "[X]" if best.replacement is None else best.replacement))
        at = end
    return "".join(out)


def chunks(data: st.DataObject, text: str, most: int = 12) -> list[str]:
    """`text` in any pieces."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=most)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def answer(moderator: Moderator, job: PendingJob, guards: Sequence[RuleGuard]) -> None:
    """Run a job of one of the guards, and hand it back."""
    guard = next(g for g in guards if g.name == job.job.servable)
    try:
        result: object = guard.predict(job.job.payload)
    except JobError as error:
        result = error
    moderator.resolve(job, result)


def released_in_any_order(
    data: st.DataObject, moderator: Moderator, pieces: Sequence[str], guards: Sequence[RuleGuard]
) -> list[str]:
    """All that had been released after each step; jobs are answered at any time and in any order."""
    pending: list[PendingJob] = []
    states = [""]

    def answer_one() -> None:
        answer(moderator, pending.pop(data.draw(st.integers(0, len(pending) - 1))), guards)

    for index, piece in enumerate(pieces):
        pending += moderator.feed(piece, final=index == len(pieces) - 1)
        while pending and data.draw(st.booleans()):
            answer_one()
        states.append(states[-1] + moderator.release().text)
    while pending:
        answer_one()
        states.append(states[-1] + moderator.release().text)
    assert moderator.ended
    return states
