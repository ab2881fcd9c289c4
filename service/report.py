"""The response field `guardrails`: what was found and done, without ever repeating the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import structlog

from guardrails.guard import Stage
from guardrails.parts import ChainResult, GuardReport
from guardrails.verdict import Action, Failure, Finding, Verdict
from service.conversation import Place
from service.http import Call
from service.telemetry.metrics import Metrics, child

if TYPE_CHECKING:  # the catalog makes strategies, which know this module
    from service.catalog import Served

logger = structlog.get_logger(__name__)

Status = Literal["passed", "modified", "blocked"]


@dataclass(slots=True)
class Report:
    """What the guards said about one request and its reply. Findings are told with where they stand.

    `looks` are the guards' own reports, for their times; `summary` is what a strategy tells of how the reply
    came about, `experiment` which arm made it, `answered` the checkpoints where versions may mix.
    """

    input: list[tuple[str, Finding]] = field(default_factory=list)
    output: list[tuple[int, str, Finding]] = field(default_factory=list)
    failures: list[tuple[Stage, Failure]] = field(default_factory=list)
    looks: list[tuple[Stage, GuardReport]] = field(default_factory=list)
    action: Action = Action.ALLOW
    summary: dict[str, Any] = field(default_factory=dict)
    experiment: dict[str, Any] | None = None
    answered: Mapping[str, None] = field(default_factory=dict)

    def add_input(self, places: Sequence[Place], result: ChainResult) -> None:
        """One phase of the input chain."""
        for place, part in zip(places, result.parts, strict=True):
            self.input += [(place.param, finding) for finding in sorted(part.verdict.findings)]
            self.failures += [("input", failure) for failure in sorted(part.verdict.failures)]
            self.looks += [("input", report) for report in part.reports]
        self.action = max(self.action, result.action)

    def add_output(self, choice: int, channel: str, verdict: Verdict, reports: Iterable[GuardReport]) -> None:
        """One channel of one choice, at its end."""
        self.looks += [("output", report) for report in reports]
        self.output += [(choice, channel, finding) for finding in sorted(verdict.findings)]
        self.failures += [("output", failure) for failure in sorted(verdict.failures)]
        self.action = max(self.action, verdict.action)

    @property
    def status(self) -> Status:
        """`blocked` covers what was escalated; `action` tells which."""
        if self.action.withholds:
            return "blocked"
        return "modified" if self.action > Action.ALLOW else "passed"

    def render(self, served: Served) -> dict[str, Any] | None:
        """The field, as much of it as the policy exposes; None for nothing."""
        expose = served.spec.expose
        if expose == "none":
            return None
        field_: dict[str, Any] = {
            "status": self.status,
            "action": self.action.name.lower(),
            "policy": {
                "name": served.name,
                "digest": served.policy.digest,
                **({"tenant": served.policy.tenant.tenant} if served.policy.tenant else {}),
            },
            "checkpoint": next(iter(self.answered), served.target.checkpoint),
        }
        if self.answered:
            field_["checkpoints"] = list(self.answered)
        if self.experiment is not None:
            field_["experiment"] = self.experiment
        # Told in a summary too: what a failed guard has not examined must not look as if it had passed.
        field_["failures"] = [
            {
                "stage": stage,
                "guard": failure.guard,
                "reason": failure.reason,
                "action": failure.action.name.lower(),
            }
            for stage, failure in self.failures
        ]
        field_.update(self.summary)
        if expose == "findings":
            field_["input"] = [{"param": param, **_finding(finding)} for param, finding in self.input]
            field_["output"] = [
                {"choice": choice, "channel": channel, **_finding(finding)}
                for choice, channel, finding in self.output
            ]
            field_["guards"] = self._looks(served)
        return field_

    def tally(self) -> dict[str, list[dict[str, Any]]]:
        """What was found, counted: for records that must not grow with the text."""
        found = Counter(
            [("input", one.guard, one.entity_type, one.action) for _, one in self.input]
            + [("output", one.guard, one.entity_type, one.action) for _, _, one in self.output]
        )
        failed = Counter((stage, one.guard, one.reason, one.action) for stage, one in self.failures)
        return {
            name: [
                {"stage": stage, "guard": guard, what: which, "action": action.name.lower(), "count": number}
                for (stage, guard, which, action), number in sorted(counts.items())
            ]
            for name, what, counts in (("findings", "category", found), ("failures", "reason", failed))
            if counts
        }

    def _looks(self, served: Served) -> list[dict[str, Any]]:
        """What each guard took in all, over all texts that it looked at, and which models spoke."""
        models = {
            (stage, guard.name): sorted(guard.servables)
            for stage, guards in (("input", served.guards.input), ("output", served.guards.output))
            for guard in guards
            if guard.servables
        }
        times: dict[tuple[Stage, str], float] = {}
        for stage, look in self.looks:
            if look.state != "skipped":
                times[stage, look.guard] = times.get((stage, look.guard), 0.0) + look.ms
        return [
            {
                "stage": stage,
                "guard": guard,
                "ms": round(ms, 3),
                **({"models": models[stage, guard]} if (stage, guard) in models else {}),
            }
            for (stage, guard), ms in times.items()
        ]

    def culprit(self) -> str:
        """The guard that decided, for a message."""
        pairs = [(finding.action, finding.guard) for _, finding in self.input]
        pairs += [(failure.action, failure.guard) for _, failure in self.failures]
        return max(pairs, default=(Action.ALLOW, ""))[1]


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "guard": finding.guard,
        "entity_type": finding.entity_type,
        "start": finding.start,
        "end": finding.end,
        "score": round(finding.score, 4),
        "action": finding.action.name.lower(),
    }


def count(metrics: Metrics, stage: Stage, verdict: Verdict, call: Call | None = None) -> None:
    """Findings and failures into the metrics; a call's findings that ask for it into the log too."""
    for finding in verdict.findings:
        if finding.log and call is not None:
            _log(stage, finding, call)
        child(metrics.findings, finding.guard, finding.entity_type, finding.action.name.lower(), stage).inc()
    for failure in verdict.failures:
        child(metrics.guard_errors, failure.guard, failure.reason, stage).inc()


def _log(stage: Stage, finding: Finding, call: Call) -> None:
    logger.info(
        "finding",
        request_id=call.id,
        policy=call.policy,
        caller=call.caller.name if call.caller else None,
        stage=stage,
        guard=finding.guard,
        category=finding.entity_type,
        score=round(finding.score, 4),
    )


def count_times(metrics: Metrics, stage: Stage, reports: Iterable[GuardReport]) -> None:
    """How long guards took, where they looked at all."""
    for report in reports:
        if report.state != "skipped" and not report.cached:
            child(metrics.guard_duration, report.guard, stage).observe(report.ms / 1e3)


def count_scores(metrics: Metrics, stage: Stage, model: str, reports: Iterable[GuardReport]) -> None:
    """What classifiers thought of a policy's traffic."""
    for report in reports:
        if report.categories and report.state == "finished":
            child(metrics.guard_score, model, report.guard, stage).observe(max(report.categories.values()))


def render_guard(report: GuardReport) -> dict[str, Any]:
    """One guard's word on one text, for `/v1/checks`."""
    return {
        "guard": report.guard,
        "state": report.state,
        "action": report.action.name.lower(),
        "score": round(report.score, 6),
        "categories": {name: round(score, 6) for name, score in report.categories.items()},
        "findings": [
            {
                "entity_type": finding.entity_type,
                "start": finding.start,
                "end": finding.end,
                "score": round(finding.score, 6),
            }
            for finding in report.findings
        ],
        "ms": report.ms,
        **({"failure": report.failure} if report.failure else {}),
    }
