"""A generative safety model as a guard: Llama Guard, Granite Guardian, ShieldGemma, or any model with rules.

The model is asked over HTTP by whoever runs the jobs. A user's turn is judged in its conversation, a reply
together with what it answers; a growing reply piece by piece, each time with all that came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from guardrails.build import GuardEnvironment
from guardrails.guard import Answer, Context, Job, Scope, Step, Turn
from guardrails.judge_formats import UNSAFE, Case, Format, make_format
from guardrails.judging import MAX_TURNS, Scores
from guardrails.scoring import Steps
from guardrails.segments import Segmenter
from guardrails.verdict import Action, Finding
from guardrails.windows import word_start
from policies.alignment import JudgeModel
from policies.errors import PolicyError, Problem
from policies.judge import JudgeSpec

CONTEXT_CHARACTERS = 6_000
"""Of the turns before the judged one together, the last."""

PIECE_CHARACTERS = 12_000
"""Of the judged text; a longer one is judged in several pieces that overlap."""

OVERLAP = 1_000


@dataclass(frozen=True, slots=True)
class JudgeGuard:
    """Asks a judge about every text. `every` is in characters, of a growing reply."""

    name: str
    scope: Scope
    on_error: Action
    deadline: float
    steps: Steps
    asks: JudgeModel
    form: Format
    every: int

    @property
    def action(self) -> Action:
        return max(remedy.action for remedy in self.steps.remedies)

    @property
    def changes_text(self) -> bool:
        return any(remedy.changes_text for remedy in self.steps.remedies)

    @property
    def reads_prompt(self) -> Literal[True]:
        return True

    @property
    def servables(self) -> frozenset[str]:
        return frozenset({self.servable})

    @property
    def servable(self) -> str:
        """Whom it asks, for metrics."""
        upstream = self.asks.upstream
        return f"judge:{upstream.model if upstream is not None else self.asks.policy}"

    def examine(self, context: Context) -> JudgeExamination:
        return JudgeExamination(self, context)

    def flagged(self, scores: Scores) -> Mapping[str, float]:
        """The labels that are findings, with their scores."""
        reached = {
            label: score
            for label, score in scores.items()
            if score > 0 and score >= self.steps.first(label.upper())
        }
        if UNSAFE in reached and any(score > 0 for label, score in scores.items() if label != UNSAFE):
            del reached[UNSAFE]  # the categories say it, each with its own steps
        return reached


class JudgeExamination:
    """One text under examination by a `JudgeGuard`."""

    __slots__ = ("_context", "_guard", "_segmenter", "_settled")

    def __init__(self, guard: JudgeGuard, context: Context) -> None:
        self._guard, self._context = guard, context
        whole = guard.scope == "document" or context.stage == "input"
        self._segmenter = None if whole else Segmenter(guard.every, 2 * guard.every)
        self._settled = 0

    def advance(self, text: str, final: bool) -> Step:
        """See `guardrails.guard.Examination`."""
        jobs: list[Job] = []
        if self._segmenter is not None:
            for start, end in self._segmenter.advance(text, final):
                self._settled = end
                if text[start:end].strip():
                    first = max(0, end - PIECE_CHARACTERS)
                    jobs += self._jobs(text, start, end, text[first:end])
        elif final:
            jobs = [
                job for piece in pieces(self._shown(text)) for job in self._jobs(text, 0, len(text), piece)
            ]
        return Step(len(text) if final else self._settled, jobs=jobs)

    def _shown(self, text: str) -> str:
        """An input as the engine is given it: without what was masked."""
        context = self._context
        return context.turns[-1][1] if context.stage == "input" and context.turns else text

    def _jobs(self, text: str, start: int, end: int, shown: str) -> Iterator[Job]:
        guard = self._guard

        def read(scores: Scores) -> Answer:
            return Answer(list(self._findings(guard.flagged(scores), start, end, text)), scores)

        case = Case.of((*self._before(), (self._context.role, shown)))
        for question in guard.form.ask(case):
            yield Job(start, end, guard.servable, question, read)

    def _before(self) -> tuple[Turn, ...]:
        """The turns that the judged one is understood by."""
        context = self._context
        if context.stage == "input":
            return recent(context.turns[:-1])
        return recent(context.turns or ((("user", context.prompt),) if context.prompt else ()))

    def _findings(self, flagged: Mapping[str, float], start: int, end: int, text: str) -> Iterator[Finding]:
        for label, score in flagged.items():
            remedy = self._guard.steps.remedy(label.upper(), score)
            yield remedy.finding(self._guard.name, label.upper(), start, end, score, text)


def pieces(text: str) -> list[str]:
    """Overlapping pieces of a text, none longer than a judge reads; none of a text without any letter."""
    if not text.strip():
        return []
    found, start = [], 0
    while len(text) - start > PIECE_CHARACTERS:
        found.append(text[start : start + PIECE_CHARACTERS])
        start = word_start(text, start + PIECE_CHARACTERS - OVERLAP, start + PIECE_CHARACTERS)
    return [*found, text[start:]]


def recent(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The last turns, and of the first of them the end, as far as a judge is shown them."""
    kept: list[Turn] = []
    left = CONTEXT_CHARACTERS
    for role, text in reversed(turns[-MAX_TURNS:]):
        if left <= 0:
            break
        kept.append((role, text[-left:]))
        left -= len(text)
    return tuple(reversed(kept))


def build(spec: JudgeSpec, env: GuardEnvironment) -> JudgeGuard:
    """The guard of `spec`. Raises `PolicyError` for a constitution that can't be read."""
    return JudgeGuard(
        name=spec.title,
        scope=spec.scope,
        on_error=env.on_error(spec),
        deadline=spec.deadline_ms / 1000,
        steps=Steps.of(spec, env.hash_key),
        asks=spec.model,
        form=make_format(spec),
        every=spec.every,
    )


def problems(spec: JudgeSpec, env: GuardEnvironment) -> Iterator[Problem]:
    """A constitution that can't be read, and levels for labels that the judge doesn't score."""
    try:
        labels = make_format(spec).labels
    except PolicyError as error:
        yield Problem(("constitution",), str(error))
        return
    for label in spec.categories:
        if label not in labels:
            yield Problem(
                ("categories", label), f"this judge scores no {label!r}; it has: {', '.join(labels)}"
            )
