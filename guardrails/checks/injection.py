"""Attempts to take over the model: jailbreaks, and instructions hidden in documents and tool results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from guardrails import models
from guardrails.build import Asked, GuardEnvironment
from guardrails.scoring import BENIGN, Judgement, ScoreGuard, score_guard
from policies.errors import Problem
from policies.spec import InjectionSpec

LABEL = "injection"


@dataclass(frozen=True, slots=True)
class Threshold:
    """The label `injection` where the classifier has it; else whatever of its labels isn't benign."""

    threshold: float

    def __call__(self, scores: Mapping[str, float]) -> Judgement:
        score = scores.get(LABEL)
        if score is None:
            score = max((s for label, s in scores.items() if label.lower() not in BENIGN), default=0.0)
        told = {LABEL.upper(): score}
        return Judgement({LABEL: score}, told if score >= self.threshold else {}, told)


def build(spec: InjectionSpec, env: GuardEnvironment) -> ScoreGuard:
    """The guard of `spec`. Raises what `guardrails.models.classifier` does."""
    ladder = spec.ladders.get(LABEL, spec.ladder)
    (heads,) = asks(spec, env).values()
    return score_guard(spec, env, Threshold(ladder[0].at), heads)


def asks(spec: InjectionSpec, env: GuardEnvironment) -> Asked:
    """The one label."""
    servable = models.classifier(spec.model, env)
    limits = {LABEL: spec.ladders.get(LABEL, spec.ladder)[0].at}
    return {servable.name: models.heads(servable, limits) if spec.leaves_early else frozenset()}


def problems(spec: InjectionSpec, env: GuardEnvironment) -> Iterator[Problem]:
    """A model that isn't there, and levels for labels that this guard doesn't report."""
    yield from models.problems(spec.model, env, "model")
    for label in spec.categories:
        if label != LABEL:
            yield Problem(("categories", label), f"this guard reports {LABEL!r} only: write 'levels'")
