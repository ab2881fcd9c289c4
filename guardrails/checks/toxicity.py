"""Insults, threats, obscenity and attacks on groups, scored by a classifier with Detoxify's labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from guardrails import models
from guardrails.build import Asked, GuardEnvironment
from guardrails.scoring import BENIGN, Judgement, ScoreGuard, score_guard
from policies.errors import Problem
from policies.spec import ToxicitySpec

OTHER_TASKS = frozenset({"injection", "jailbreak", "harm", "unsafe_reply", "self_harm", "violence"})
"""Labels of other tasks in a classifier with several heads; they count only with a threshold of their own."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A label is flagged from its own threshold on, or else from the common one."""

    common: float
    own: Mapping[str, float]

    def __call__(self, scores: Mapping[str, float]) -> Judgement:
        relevant = {
            label: score
            for label, score in scores.items()
            if label in self.own or (label not in OTHER_TASKS and label.lower() not in BENIGN)
        }
        flagged = {
            label.upper(): score
            for label, score in relevant.items()
            if score >= self.own.get(label, self.common)
        }
        return Judgement(relevant, flagged, {label.upper(): score for label, score in relevant.items()})


def build(spec: ToxicitySpec, env: GuardEnvironment) -> ScoreGuard:
    """The guard of `spec`. Raises what `guardrails.models.classifier` does."""
    own = {label: levels[0].at for label, levels in spec.ladders.items()}
    (heads,) = asks(spec, env).values()
    return score_guard(spec, env, Thresholds(spec.ladder[0].at, own), heads)


def asks(spec: ToxicitySpec, env: GuardEnvironment) -> Asked:
    """All labels that the guard flags."""
    servable = models.classifier(spec.model, env)
    if not spec.leaves_early:
        return {servable.name: frozenset()}
    limits = {label: levels[0].at for label, levels in spec.ladders.items()}
    for label in models.labels(spec.model, env) - OTHER_TASKS:
        limits.setdefault(label, spec.ladder[0].at)
    return {servable.name: models.heads(servable, limits)}


def problems(spec: ToxicitySpec, env: GuardEnvironment) -> Iterator[Problem]:
    """A model that isn't there, and thresholds or levels for labels that it doesn't have."""
    yield from models.problems(spec.model, env, "model")
    labels = models.labels(spec.model, env)
    for key, named in (("thresholds", spec.thresholds), ("categories", spec.categories)):
        for label in named:
            if labels and label not in labels:
                known = ", ".join(sorted(labels))
                yield Problem((key, label), f"the model has no label {label!r}; it has: {known}")
