"""Requests for something harmful, and replies that give it, judged together with what was asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from guardrails import models
from guardrails.build import Asked, GuardEnvironment
from guardrails.guard import Context
from guardrails.scoring import BENIGN, Judgement, ScoreExamination, ScoreGuard, score_guard
from policies.errors import Problem
from policies.spec import HarmSpec

REQUEST, REPLY = "harm", "unsafe_reply"
SUBJECTS = ("self_harm", "violence")
"""Reported always, and findings only with a ladder of their own: to speak of them is no harm yet."""

SHOWN_PROMPT = 220
"""Characters of a prompt, the last, that a reply is judged with."""
MARK = "\n[reply] "
"""What parts a prompt from its reply; the classifier was trained on texts of this form."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """For what users write (`label` is REQUEST) or for replies; of a classifier without these labels the
    worst counts."""

    label: str
    common: float
    own: Mapping[str, float]

    def __call__(self, scores: Mapping[str, float]) -> Judgement:
        if REQUEST not in scores and REPLY not in scores:
            worst = max((s for label, s in scores.items() if label.lower() not in BENIGN), default=0.0)
            scores = {self.label: worst}
        told = (self.label,) if self.label == REPLY else (self.label, *SUBJECTS)
        relevant = {label: scores[label] for label in told if label in scores}
        limits = {self.label: self.common, **self.own}
        may = {label: score for label, score in relevant.items() if label in limits}
        flagged = {label.upper(): score for label, score in may.items() if score >= limits[label]}
        return Judgement(relevant, flagged, {label.upper(): score for label, score in may.items()})


@dataclass(frozen=True, slots=True)
class HarmGuard(ScoreGuard):
    """Judges what users and tools write by itself, and what the model writes after its prompt."""

    reply_judge: Thresholds = field(kw_only=True)
    reply_heads: tuple[str, ...] = ()

    @property
    def reads_prompt(self) -> Literal[True]:
        return True

    def examine(self, context: Context) -> ScoreExamination:
        if context.stage == "input" and context.role != "assistant":
            return ScoreExamination(self, context)
        judging = replace(self, judge=self.reply_judge, heads=self.reply_heads, sentences=False)
        return ScoreExamination(judging, context, lead=lead(context.prompt))


def lead(prompt: str) -> str:
    """What stands before every piece of a reply when it is judged."""
    return f"{prompt[-SHOWN_PROMPT:]}{MARK}"


def build(spec: HarmSpec, env: GuardEnvironment) -> HarmGuard:
    """The guard of `spec`. Raises what `guardrails.models.classifier` does."""
    own = {label: levels[0].at for label, levels in spec.ladders.items()}
    (heads,) = asks(spec, env).values()
    plain = score_guard(spec, env, Thresholds(REQUEST, spec.ladder[0].at, own), heads)
    return HarmGuard(
        plain.name,
        plain.scope,
        plain.on_error,
        plain.deadline,
        plain.steps,
        plain.servable,
        plain.judge,
        plain.heads,
        plain.evidence,
        plain.sentences,
        reply_judge=Thresholds(REPLY, spec.ladder[0].at, own),
        # A reply stands after its prompt, in a text that no other guard asks about.
        reply_heads=tuple(models.heads(plain.servable, _limits(spec, REPLY))) if spec.leaves_early else (),
    )


def asks(spec: HarmSpec, env: GuardEnvironment) -> Asked:
    """What is flagged in what users write; of replies, with their prompts, the guard asks apart."""
    servable = models.classifier(spec.model, env)
    heads = models.heads(servable, _limits(spec, REQUEST)) if spec.leaves_early else frozenset[str]()
    return {servable.name: heads}


def _limits(spec: HarmSpec, label: str) -> dict[str, float]:
    """From which scores on something is flagged, in requests or in replies."""
    subjects = SUBJECTS if label == REQUEST else ()
    own = {name: levels[0].at for name, levels in spec.ladders.items() if name in (label, *subjects)}
    return {label: spec.ladder[0].at, **own}


def problems(spec: HarmSpec, env: GuardEnvironment) -> Iterator[Problem]:
    """A model that isn't there, and levels for labels that this guard doesn't report or the model lacks."""
    yield from models.problems(spec.model, env, "model")
    labels = models.labels(spec.model, env)
    reported = (REQUEST, REPLY, *SUBJECTS)
    for label in spec.categories:
        if label not in reported:
            yield Problem(
                ("categories", label), f"this guard reports no {label!r}; it has: {', '.join(reported)}"
            )
        elif labels and label not in labels and label in SUBJECTS:
            known = ", ".join(sorted(labels))
            yield Problem(("categories", label), f"the model has no label {label!r}; it has: {known}")
