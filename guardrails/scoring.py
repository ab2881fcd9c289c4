"""Guards that judge by a classifier's scores; `toxicity` and `injection` say by which, and from where on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from guardrails import models
from guardrails.build import GuardEnvironment
from guardrails.classifier import Output
from guardrails.evidence import Evidence, Piece
from guardrails.guard import Answer, Context, Job, Scope, Step
from guardrails.in_context import Excerpt
from guardrails.normalize import charwise
from guardrails.remedy import Remedy
from guardrails.servable import ServableSpec
from guardrails.verdict import Action, Finding
from guardrails.windows import Window, Windows, disguises, odd, spaced_out
from policies.guards import ScoredBase
from policies.severity import Levels
from policies.spec import ClassifierBase, EvidenceSpec

MAX_VIEWS = 4
"""Readings of one window that are scored: as it stands, unspaced, decoded …; the highest score counts."""

BENIGN = frozenset(
    "benign clean harmless label_0 legit legitimate neutral non-toxic non_toxic nontoxic normal not_toxic ok "
    "safe".split()
)
"""Labels that say that nothing is wrong, in classifiers with one probability for each of two classes."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Which of a classifier's scores concern a guard; by entity type, which of those are findings, and which
    may be: the scores of every label that has a threshold."""

    scores: Mapping[str, float]
    flagged: Mapping[str, float]
    open: Mapping[str, float]


Judge = Callable[[Mapping[str, float]], Judgement]


@dataclass(frozen=True, slots=True)
class Steps:
    """What is done about a label's score: that of the highest step which the score reaches.

    `own` has the labels with a ladder of their own, by entity type. Steps ascend.
    """

    common: tuple[tuple[float, Remedy], ...]
    own: Mapping[str, tuple[tuple[float, Remedy], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: ScoredBase, hash_key: bytes) -> Steps:
        """The ladders of a guard's settings."""
        return cls(
            _steps(spec.ladder, hash_key),
            {label.upper(): _steps(levels, hash_key) for label, levels in spec.ladders.items()},
        )

    def first(self, entity_type: str) -> float:
        """The score from which on something is done about a label."""
        return self.own.get(entity_type, self.common)[0][0]

    def remedy(self, entity_type: str, score: float) -> Remedy:
        """For a label that was flagged, and so has reached its first step."""
        steps = self.own.get(entity_type, self.common)
        return next((remedy for at, remedy in reversed(steps) if score >= at), steps[0][1])

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        return tuple(remedy for steps in (self.common, *self.own.values()) for _, remedy in steps)


def _steps(levels: Levels, hash_key: bytes) -> tuple[tuple[float, Remedy], ...]:
    return tuple(
        (level.at, Remedy(level.action, hash_key, level.replacement, level.penalty)) for level in levels
    )


@dataclass(frozen=True, slots=True)
class ScoreGuard:
    """Scores every piece of a text; a piece that is flagged is a finding over the whole of it.

    `heads`: what an early exit is asked; none where the whole encoder is to answer. `sentences`:
    long texts that are complete are read sentence by sentence as well.
    """

    name: str
    scope: Scope
    on_error: Action
    deadline: float
    steps: Steps
    servable: ServableSpec
    judge: Judge
    heads: tuple[str, ...] = ()
    evidence: EvidenceSpec | None = None
    sentences: bool = False

    @property
    def action(self) -> Action:
        return max(remedy.action for remedy in self.steps.remedies)

    @property
    def changes_text(self) -> bool:
        return any(remedy.changes_text for remedy in self.steps.remedies)

    @property
    def servables(self) -> frozenset[str]:
        return frozenset({self.servable.name})

    @property
    def servable_specs(self) -> Mapping[str, ServableSpec]:
        return {self.servable.name: self.servable}

    def examine(self, context: Context) -> ScoreExamination:
        return ScoreExamination(self, context)


class ScoreExamination:
    """One text under examination by a `ScoreGuard`; `lead` is put before each piece that is scored."""

    __slots__ = ("_evidence", "_guard", "_heads", "_lead", "_windows")

    def __init__(self, guard: ScoreGuard, context: Context, lead: str = "") -> None:
        self._guard = guard
        self._lead = charwise(lead).text
        self._heads = () if odd(lead) or (guard.heads and disguises(lead)) else guard.heads
        self._windows = Windows(context, whole=guard.scope == "document")
        rule = guard.evidence
        self._evidence = Evidence(rule.above, rule.limit) if rule is not None else None

    def begin(self, floor: int) -> None:
        """Pieces that end before `floor` are not answered for (`guardrails.beyond`)."""
        if self._evidence is not None:
            self._evidence.begin(floor)

    def advance(self, text: str, final: bool) -> Step:
        windows, settled = self._windows.advance(text, final)
        jobs = [job for window in windows for job in self._jobs(text, window)]
        return Step(settled, jobs=jobs)

    def _jobs(self, text: str, window: Window) -> Iterator[Job]:
        guard = self._guard
        start, end = (0, len(text)) if guard.scope == "document" else (window.start, window.end)
        excerpts = readings(window, self._heads, guard.sentences)
        evidence = self._evidence
        piece = evidence.expect(start, end, len(excerpts)) if evidence is not None else None

        def read(output: Output) -> Answer:
            judgement = guard.judge(output.scores)
            findings = list(self._findings(judgement.flagged, start, end, text))
            if evidence is not None and piece is not None:
                findings += self._gathered(evidence.add(piece, judgement.open), text)
            return Answer(findings, judgement.scores)

        for excerpt in excerpts:
            led = Excerpt(self._lead + excerpt.text, 0, excerpt.heads) if self._lead else excerpt
            yield Job(start, end, guard.servable.name, led, read)

    def _gathered(self, reached: Iterable[tuple[Piece, str]], text: str) -> Iterator[Finding]:
        """Where evidence has reached its limit: as if the label had just reached its first step there."""
        for piece, entity_type in reached:
            at = self._guard.steps.first(entity_type)
            if piece.scores[entity_type] < at:
                yield from self._findings({entity_type: at}, piece.start, piece.end, text)

    def _findings(self, flagged: Mapping[str, float], start: int, end: int, text: str) -> Iterable[Finding]:
        for entity_type, score in flagged.items():
            remedy = self._guard.steps.remedy(entity_type, score)
            yield remedy.finding(self._guard.name, entity_type, start, end, score, text)


def readings(window: Window, heads: tuple[str, ...] = (), sentences: bool = False) -> list[Excerpt]:
    """The different ways to read a window: as it stands, unless it is in spaced letters, then what disguises
    hide in it, then, where asked for, its sentences. The `heads` are asked of a text that isn't disguised."""
    found = list(map(Excerpt, disguises(window.scored)[: MAX_VIEWS - 1]))
    if not spaced_out(window.scored):
        found.insert(0, window.asked(heads))
    return found + [part.asked(heads) for part in window.sentences()] if sentences else found


def score_guard(
    spec: ClassifierBase, env: GuardEnvironment, judge: Judge, heads: frozenset[str] = frozenset()
) -> ScoreGuard:
    """The guard of `spec`, judging by `judge`, which needs to know of `heads` (`models.heads`)."""
    servable = models.classifier(spec.model, env)
    return ScoreGuard(
        name=spec.title,
        scope=spec.scope,
        on_error=env.on_error(spec),
        deadline=spec.deadline_ms / 1000,
        steps=Steps.of(spec, env.hash_key),
        servable=servable,
        judge=judge,
        heads=env.heads(servable.name, heads),
        evidence=spec.evidence,
        sentences=spec.sentences,
    )
