"""What came of each generation, told once at its end to whoever has subscribed.

    stop = gateway.outcomes.subscribe(callback)                              all of them
    gateway.outcomes.subscribe(callback, lambda generation: …)               those that it wants

`callback(outcome)` is called on the event loop after the reply went out (before an error does), for plain,
guarded and aligned replies, streamed or whole, finished or not; it must return at once and may put a row into
the store (`writer.put("completions", completions.row_of(outcome))`). What it raises is logged and otherwise
nobody's. The second argument is asked when a request has been understood: where nobody wants its outcome,
nothing is gathered. `completion_id` is the id that the client saw, empty where it saw none (errors).

An outcome holds no text, and of who asked only a keyed hash.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

if TYPE_CHECKING:
    from service.generation import Generation
    from service.report import Report

FindingKey = tuple[str, str, str, str]
"""Guard, category, action, stage."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One generation that has ended. Times in seconds; `at` since 1970, at the end.

    state:       how the request ended: finished, blocked, aborted, failed
    status:      what the guards made of it: passed, modified, blocked; passed where there are none
    action:      the strongest action of a guard, by name
    error:       the error's code or type, None where there was none
    unit:        keyed hash of the session, user or key by which an experiment assigned its arm
    epoch:       how often the experiment's weights or arms had changed by then
    findings:    how many, by guard, category, action and stage
    reward:      the chosen reply's score where the policy reranks, the mean over choices
    characters:  of the reply's texts that went out
    """

    completion_id: str
    request_id: str
    at: float
    kind: str
    policy: str
    policy_digest: str
    checkpoint: str
    state: str
    status: str
    action: str
    error: str | None
    stream: bool
    duration_s: float
    first_token_s: float | None
    tokens_in: int
    tokens_out: int
    characters: int
    experiment: str | None = None
    arm: str | None = None
    epoch: int | None = None
    unit: str | None = None
    findings: Mapping[FindingKey, int] = field(default_factory=dict)
    reward: float | None = None
    revise_rounds: int | None = None


@dataclass(slots=True)
class Tally:
    """What is gathered of a reply while it is made, where somebody wants its outcome."""

    completion_id: str = ""
    characters: int = 0
    report: Report | None = None


Observer = Callable[[Outcome], None]
Wants = Callable[["Generation"], bool]


class Outcomes:
    """Who wants to know what came of generations."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._observers: list[tuple[Observer, Wants | None]] = []

    def subscribe(self, observer: Observer, wants: Wants | None = None) -> Callable[[], None]:
        """Call `observer` with every outcome, or with those of generations that `wants` is true of.

        Returns what ends the subscription.
        """
        entry = (observer, wants)
        self._observers.append(entry)

        def stop() -> None:
            if entry in self._observers:
                self._observers.remove(entry)

        return stop

    def begin(self, generation: Generation) -> None:
        """Have `generation` gather its outcome, if anybody wants it."""
        for _, wants in self._observers:
            if wants is None or wants(generation):
                generation.tally = Tally()
                return

    def end(self, generation: Generation) -> None:
        """Tell what came of it."""
        if generation.tally is None:
            return
        outcome = _outcome(generation, generation.tally)
        for observer, wants in tuple(self._observers):
            try:
                if wants is None or wants(generation):
                    observer(outcome)
            except Exception as error:
                self._log.error("outcome observer failed", request_id=outcome.request_id, exc_info=error)


def _outcome(generation: Generation, tally: Tally) -> Outcome:
    call, served, report = generation.call, generation.served, tally.report
    first, assignment = generation.first_token_at, generation.assignment
    return Outcome(
        completion_id=tally.completion_id,
        request_id=call.id,
        at=time.time(),
        kind=generation.kind,
        policy=served.name,
        policy_digest=served.policy.digest,
        checkpoint=generation.checkpoint,
        state=call.state,
        status=report.status if report else "passed",
        action=report.action.name.lower() if report else "allow",
        error=call.error,
        stream=call.stream,
        duration_s=time.perf_counter() - call.started,
        first_token_s=None if first is None else first - call.started,
        tokens_in=generation.usage.input,
        tokens_out=generation.usage.output,
        characters=tally.characters,
        experiment=assignment.experiment if assignment else None,
        arm=assignment.arm if assignment else None,
        epoch=assignment.epoch if assignment else None,
        unit=assignment.unit if assignment else None,
        findings=_findings(report) if report else {},
        reward=_reward(report) if report else None,
        revise_rounds=_rounds(report) if report else None,
    )


def _findings(report: Report) -> dict[FindingKey, int]:
    counts: dict[FindingKey, int] = {}
    found = [("input", finding) for _, finding in report.input]
    found += [("output", finding) for _, _, finding in report.output]
    for stage, finding in found:
        key = (finding.guard, finding.entity_type, finding.action.name.lower(), stage)
        counts[key] = counts.get(key, 0) + 1
    return counts


def _reward(report: Report) -> float | None:
    """The mean of the chosen replies' scores, as the rerank summary tells them."""
    scores = [score for score in report.summary.get("rerank", {}).get("scores", ()) if score is not None]
    return sum(scores) / len(scores) if scores else None


def _rounds(report: Report) -> int | None:
    """The revisions of all choices together; None where the policy doesn't revise."""
    choices = report.summary.get("revise", {}).get("choices")
    return None if choices is None else sum(choice["rounds"] for choice in choices)
