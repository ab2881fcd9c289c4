"""The stream contract, over random texts, guards, chunkings and orders of answers.

G(x) is computed by other means than the moderator: from what `regex.finditer` and the guards' own
predictions say about the finished text.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from guardrails.guard import Context, JobError
from guardrails.segments import Segmenter
from guardrails.stream import Moderator, PendingJob
from guardrails.verdict import Action, Finding
from tests.guardrails.scripted import Rule, RuleGuard, cases

PIECES = [
    "a", "b", "ab", "aab", "ba", "1", "12", "123-45", " ", "\n", ". ", "! ", "-", "@", "x@y.zz", "bad",
    "worse", "sorry", "é", "e\u0301", "\u200b", "\U0001f600", "\U0001f468\u200d\U0001f469", "。", "\u00ad",
    "Ａ", "\r\n",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=18).map("".join) | st.text(max_size=24)

SOURCES = [
    r"\bbad\b", r"worse", r"\d{3}-\d{2}", r"\b\w+@\w+\.\w{2,}\b", r"a+b", r"(?:ab)+", r"a(?!b)", r"b$",
    r"(?m)^a", r"\d+\B", r"(?<=a)b+", r"[^\s\d]{2,3}", r"(?i)SORRY\s+\S", r"(a|b)\1", r".\b.", r"\s+",
]  # fmt: skip
ACTIONS = [Action.ALLOW, Action.REDACT, Action.REDACT, Action.REWRITE, Action.ESCALATE, Action.BLOCK]
rules = st.builds(
    Rule, st.sampled_from(SOURCES), st.sampled_from(ACTIONS), st.sampled_from([None, "", "#", "long words"])
)


@st.composite
def guard_sets(draw: st.DrawFn) -> list[RuleGuard]:
    return [
        RuleGuard(
            name=f"g{index}",
            rules=draw(st.lists(rules, min_size=1, max_size=3)),
            scope=draw(st.sampled_from(["pattern", "pattern", "segment", "segment", "document"])),
            on_error=draw(st.sampled_from([Action.BLOCK, Action.ESCALATE, Action.ALLOW])),
            fail_on=draw(st.sampled_from(["", "", "12", "sorry"])),
            longest=draw(st.integers(4, 12)),
        )
        for index in range(draw(st.integers(0, 3)))
    ]


def found(guard: RuleGuard, text: str) -> tuple[list[Finding], list[int]]:
    """What `guard` has to say about the finished `text`, and where it fails."""
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
            failed.append(start)
        else:
            findings += [guard.finding(guard.rules[rule], s, e) for rule, s, e in answers]
    return findings, failed


def moderated(guards: Sequence[RuleGuard], text: str) -> str:
    """G(text), character by character: an independent, slow statement of the rule in guardrails.apply."""
    findings: list[Finding] = []
    cut = len(text)
    for guard in guards:
        own, failed = found(guard, text)
        findings += own
        if guard.on_error.withholds:
            cut = min([cut, *failed])
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
        out.append("[X]" if best.replacement is None else best.replacement)
        at = end
    return "".join(out)


def chunks(data: st.DataObject, text: str) -> list[str]:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def answer(moderator: Moderator, job: PendingJob, guards: Sequence[RuleGuard]) -> None:
    guard = next(g for g in guards if g.name == job.job.servable)
    try:
        result: object = guard.predict(job.job.payload)
    except JobError as error:
        result = error
    moderator.resolve(job, result)


@cases(1_500)
@given(st.data(), texts, guard_sets())
def test_any_chunking_and_any_order_of_answers_releases_the_same_text(
    data: st.DataObject, text: str, guards: list[RuleGuard]
) -> None:
    # A pattern guard that fails does so when it sees the word, wherever it is by then: that may depend on
    # the chunks, and is no answer about the text. Its failing is tested by itself.
    for guard in guards:
        if guard.scope == "pattern":
            guard.fail_on = ""
    expected = moderated(guards, text)
    moderator = Moderator(guards, Context())
    pending: list[PendingJob] = []
    released = ""
    ended = False
    pieces = chunks(data, text)
    for index, piece in enumerate(pieces):
        pending += moderator.feed(piece, final=index == len(pieces) - 1)
        while pending and data.draw(st.booleans()):
            answer(moderator, pending.pop(data.draw(st.integers(0, len(pending) - 1))), guards)
        release = moderator.release()
        released += release.text
        ended = release.ended
        assert expected.startswith(released)
    while pending:
        answer(moderator, pending.pop(data.draw(st.integers(0, len(pending) - 1))), guards)
        release = moderator.release()
        released += release.text
        ended = release.ended
        assert expected.startswith(released)
    assert ended
    assert released == expected
