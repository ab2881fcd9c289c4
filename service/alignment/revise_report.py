"""What revision tells of itself: the response's summary and the metrics. No text, bounded labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from service.telemetry.metrics import Metrics, child

if TYPE_CHECKING:  # it makes what is told of here
    from service.alignment.revise import Cost, Revise, Version, Work


def summary_of(revise: Revise, works: Sequence[Work], cost: Cost, detailed: bool) -> dict[str, Any]:
    """`guardrails.revise`; the violated principles' ids only where findings are exposed."""
    constitution = revise.constitution
    told: dict[str, Any] = {
        "constitution": f"{constitution.name}@{constitution.digest[:12]}",
        "judge": revise.judge.label,
        "when": revise.spec.when,
        "choices": [_choice(work, detailed) for work in works],
    }
    if works:
        told["tokens"] = {"judge": cost.judge.render(), "reviser": cost.reviser.render()}
        told["ms"] = round(cost.seconds * 1e3, 1)
    return told


def record(metrics: Metrics, model: str, works: Sequence[Work], cost: Cost, choices: int) -> None:
    """Count what became of a reply's choices."""
    child(metrics.revise_replies, model, "unexamined").inc(choices - len(works))
    for work in works:
        child(metrics.revise_replies, model, work.outcome).inc()
        child(metrics.revise_rounds, model).observe(len(work.versions) - 1)
        if work.error is not None:
            child(metrics.revise_errors, model, work.error).inc()
        for principle in _violated(work.versions[0]) or ():
            child(metrics.revise_violations, model, principle).inc()
    if works:
        child(metrics.revise_duration, model).observe(cost.seconds)
    for role, spent in (("judge", cost.judge), ("reviser", cost.reviser)):
        child(metrics.revise_tokens, model, role).inc(spent.prompt + spent.completion)


def _choice(work: Work, detailed: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "index": work.index,
        "outcome": work.outcome,
        "rounds": len(work.versions) - 1,
    }
    if work.error is not None:
        told["error"] = work.error
    if detailed:
        told["violated"] = _violated(work.versions[0])
        if len(work.versions) > 1:
            told["left"] = _violated(work.last)
    if work.rewards:
        told["rewards"] = [round(reward, 4) for reward in work.rewards]
    return told


def _violated(version: Version) -> list[str] | None:
    """The principles that a version violates; None where no judge has said so or otherwise."""
    return None if version.critique is None else list(version.critique.principles)
