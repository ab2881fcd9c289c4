"""Texts as they may be kept: what the guards against personal data and secrets find is taken out.

Whatever their action is for replies, here they replace; where one of them fails, nothing may be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from guardrails.apply import Change, apply, clusters
from guardrails.build import GuardEnvironment, GuardSet, build_guard
from guardrails.chain import check_texts
from guardrails.guard import Guard, JobRunner
from guardrails.parts import Part
from guardrails.verdict import Action, Verdict
from policies.spec import PiiSpec, PolicySpec, SecretsSpec


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text without what it should not hold, and where that stood in the text as it was."""

    text: str
    changes: tuple[Change, ...] = ()

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Where a span of the text as it was now stands. What was replaced under it belongs to it whole."""
        shift = 0
        begin, stop = start, end
        for change in self.changes:
            grown = len(change.replacement("")) - (change.end - change.start)
            if change.end <= start:
                shift += grown
            elif change.start < end:
                begin, stop = min(begin, change.start), max(stop, change.end) + grown
        return begin + shift, stop + shift


def build_redactors(spec: PolicySpec, guards: GuardSet, env: GuardEnvironment) -> tuple[Guard, ...]:
    """The guards for texts of this policy that are kept: for all that is known, and its own beside them."""
    everything = (PiiSpec(label="kept-pii", deadline_ms=10_000), SecretsSpec(label="kept-secrets"))
    return (*(build_guard(one, env) for one in everything), *own_guards(spec, guards, ("pii", "secrets")))


def own_guards(spec: PolicySpec, guards: GuardSet, kinds: Sequence[str]) -> list[Guard]:
    """The policy's guards of these kinds, of both sides."""
    sides = ((spec.input, guards.input), (spec.output, guards.output))
    return [guard for specs, own in sides for s, guard in zip(specs, own, strict=True) if s.guard in kinds]


async def redact(
    texts: Iterable[str], guards: Sequence[Guard], runner: JobRunner, policy_digest: str
) -> list[Redacted] | None:
    """The texts as they may be kept; None where that isn't sure."""
    parts = [Part("user", text) for text in texts]
    if not guards:
        return [Redacted(part.text) for part in parts]
    result = await check_texts(guards, parts, runner, policy_digest=policy_digest)
    if any(part.verdict.failures for part in result.parts):
        return None
    return [_without(part.part.text, part.verdict) for part in result.parts]


def _without(text: str, verdict: Verdict) -> Redacted:
    found = [
        replace(finding, action=Action.REDACT, replacement=f"<{finding.entity_type}>", mask=False)
        for finding in verdict.findings
        if finding.start < finding.end
    ]
    return Redacted(apply(text, Verdict.of(found, ())), tuple(clusters(found)))
