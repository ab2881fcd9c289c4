"""What is kept of generations whose policies ask for it: that they were, their texts, what was withheld.

All of it happens behind the reply: rows go into the store's spool, texts first through guard workers that
take personal data out. Where that can't be done, the texts are not kept; what was found still is.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from structlog.typing import FilteringBoundLogger

from guardrails.guard import Stage
from guardrails.runtime import Runtime
from guardrails.verdict import Action, Finding
from policies.alignment import RewardServer
from policies.records import ReviewSpec
from service.catalog import Served
from service.generation import Generation
from service.outcomes import Outcome
from service.pairing import RERANKED, pair_row
from service.redaction import redact
from service.report import Report
from service.store.completions import row_of
from service.store.writer import Row, Writer
from service.telemetry.metrics import Metrics, child
from service.transcript import Contrast, Messages, conversation

KNOWN = 20_000  # completions that are remembered here, before the store is asked
KEEPING = 256  # texts that are being redacted at a time
REDACT_SECONDS = 15.0
AT_ONCE = 16  # items for review of one generation
_DEFAULT_REVIEW = ReviewSpec(items="escalated")


class Records:
    """One gateway's."""

    def __init__(self, writer: Writer, runtime: Runtime, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._writer = writer
        self._metrics = metrics
        self._runtime = runtime
        self._log = log
        self._wanted: dict[str, bool] = {}
        self._known: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def policy_of(self, completion_id: str) -> tuple[str, str] | None:
        """Name and digest of the policy of a completion that this gateway gave not long ago."""
        return self._known.get(completion_id)

    def concerns(self, served: Served) -> bool:
        """Whether anything is kept of this policy's generations."""
        digest = served.policy.digest
        if digest not in self._wanted:
            spec = served.spec
            escalates = '"escalate"' in spec.model_dump_json()
            kept = spec.feedback is not None or spec.keeps_pairs
            self._wanted[digest] = kept or spec.review != _DEFAULT_REVIEW or escalates
        return self._wanted[digest]

    def wants(self, generation: Generation) -> bool:
        """For `Outcomes.subscribe`."""
        return self.concerns(generation.served)

    def observe(self, outcome: Outcome) -> None:
        """Keep that it was, for who asks by its id."""
        if not outcome.completion_id:
            return
        self._writer.put("completions", row_of(outcome))
        self._known[outcome.completion_id] = (outcome.policy, outcome.policy_digest)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)

    def end(self, generation: Generation) -> None:
        """Keep its texts, and what was withheld of it, as far as its policy wants that."""
        tally = generation.tally
        if tally is None or not self.concerns(generation.served):
            return
        spec, transcript = generation.served.spec, generation.transcript
        if tally.report is not None and tally.report.action.withholds:
            for withheld in _withheld(tally.report)[:AT_ONCE]:
                if spec.review.items == "withheld" or Action.ESCALATE in withheld.actions:
                    self._review(generation, withheld, tally.completion_id)
        if transcript is None or not tally.completion_id or generation.call.state != "finished":
            return
        prompt = conversation(generation)
        if not prompt:
            return
        replies = transcript.replies()
        if spec.feedback is not None and spec.feedback.store == "text" and any(replies):
            self._start(self._keep_texts(generation.served, tally.completion_id, prompt, replies))
        if spec.keeps_pairs and transcript.contrast is not None:
            self._start(self._keep_pair(generation.served, tally.completion_id, prompt, transcript.contrast))

    async def aclose(self) -> None:
        """See what is being kept to its end, for a while."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=REDACT_SECONDS)

    def _start(self, keeping: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(keeping)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Texts

    async def _keep_texts(
        self, served: Served, completion_id: str, prompt: Messages, replies: Sequence[str]
    ) -> None:
        kept = await self.redacted(served, [*(turn["content"] for turn in prompt), *replies])
        if kept is None:
            return
        said = [text for text, _ in kept]
        turns = [{**turn, "content": text} for turn, text in zip(prompt, said, strict=False)]
        row = {
            "completion_id": completion_id,
            "policy": served.name,
            "prompt_digest": prompt_digest(turns),
            "prompt": turns,
            "replies": said[len(prompt) :],
            "at": time.time(),
        }
        self._writer.put("texts", row)

    async def _keep_pair(
        self, served: Served, completion_id: str, prompt: Messages, contrast: Contrast
    ) -> None:
        """Candidates of reranking, the better one first."""
        kept = await self.redacted(
            served, [*(turn["content"] for turn in prompt), contrast.best, contrast.worst]
        )
        outcome = "failed"
        if kept is not None:
            *said, best, worst = (text for text, _ in kept)
            turns = [{**turn, "content": text} for turn, text in zip(prompt, said, strict=True)]
            names = [model if isinstance(model, str) else model.upstream.model for model in _scorers(served)]
            about = {
                "completion_id": completion_id,
                "policy": served.name,
                "checkpoint": served.target.checkpoint,
                "scorer": ", ".join(served.checkpoints.get(name, name) for name in names),
            }
            scores = (contrast.best_score, contrast.worst_score)
            each = ({**about, "reward": scores[0]}, {**about, "reward": scores[1]})
            row = pair_row(turns, best, worst, RERANKED, about=each, gap=scores[0] - scores[1])
            outcome = "stored" if best != worst and self._writer.put("pairs", row) else "unfit"
        child(self._metrics.rerank_pairs, served.name, outcome).inc()

    async def redacted(
        self, served: Served, texts: Sequence[str], spans: Sequence[tuple[int, int]] = ()
    ) -> list[tuple[str, list[tuple[int, int]]]] | None:
        """The texts as they may be kept, and where `spans` of each now stand; None where they may not.

        A policy that keeps no text has no guards for that, so that nothing may be kept.
        """
        if not served.redactors or len(self._tasks) > KEEPING:
            return None
        try:
            async with asyncio.timeout(REDACT_SECONDS):
                found = await redact(texts, served.redactors, self._runtime, served.policy.digest)
        except TimeoutError:
            found = None
        if found is None:
            self._log.warning("texts_not_kept", policy=served.name, reason="guards could not examine them")
            return None
        return [(one.text, [one.place(*span) for span in spans]) for one in found]

    # What was withheld

    def _review(self, generation: Generation, withheld: _Withheld, completion_id: str) -> None:
        served, transcript = generation.served, generation.transcript
        row: Row = {
            "id": f"rev-{secrets.token_hex(12)}",
            "at": time.time(),
            "policy": served.name,
            "policy_digest": served.policy.digest,
            "checkpoint": generation.checkpoint,
            "completion_id": completion_id,
            "request_id": generation.call.id,
            "stage": withheld.stage,
            "action": max(withheld.actions).name.lower(),
            "findings": [_told(served, finding) for finding in withheld.findings],
            "prompt": None,
            "text": None,
            "status": "open",
        }
        if served.spec.review.store == "none" or transcript is None:
            self._writer.put("reviews", row)
            return
        if withheld.stage == "input":
            text, prompt = transcript.withheld_input(withheld.param), None
        else:
            text = transcript.withheld_reply(withheld.choice, withheld.channel)
            prompt = conversation(generation)
        self._start(self._keep_review(served, row, text, prompt or []))

    async def _keep_review(self, served: Served, row: Row, text: str, prompt: Messages) -> None:
        spans = [(found["start"], found["end"]) for found in row["findings"]]
        texts = [text, *(turn["content"] for turn in prompt)]
        kept = await self.redacted(served, texts, spans) if text else None
        if kept is not None:
            (row["text"], places), *turns = kept
            for found, (start, end) in zip(row["findings"], places, strict=True):
                found["start"], found["end"] = start, end
            said = [{**turn, "content": told} for turn, (told, _) in zip(prompt, turns, strict=True)]
            row["prompt"] = said or None
        self._writer.put("reviews", row)


def _scorers(served: Served) -> tuple[str | RewardServer, ...]:
    return served.spec.rerank.models if served.spec.rerank is not None else ()


def prompt_digest(turns: Messages) -> str:
    """The same for the same conversation."""
    return hashlib.sha256(orjson.dumps(turns)).hexdigest()


@dataclass(slots=True)
class _Withheld:
    """One text that was withheld: of the request by its `param`, of the reply by choice and channel.

    `actions` are those of its findings; where there are none, of the failures that withheld it.
    """

    stage: Stage
    param: str = ""
    choice: int = 0
    channel: str = "content"
    findings: list[Finding] = field(default_factory=list)
    actions: set[Action] = field(default_factory=set)


def _withheld(report: Report) -> list[_Withheld]:
    """All that was, the request's texts first; not empty where the report's action withholds."""
    texts: dict[tuple[str, int, str], _Withheld] = {}
    for param, finding in report.input:
        one = texts.setdefault((param, 0, ""), _Withheld("input", param))
        one.findings.append(finding)
    for choice, channel, finding in report.output:
        one = texts.setdefault(("", choice, channel), _Withheld("output", "", choice, channel))
        one.findings.append(finding)
    for one in texts.values():
        one.actions = {finding.action for finding in one.findings}
    found = [one for one in texts.values() if any(action.withholds for action in one.actions)]
    if found:
        return found
    failed = [(stage, failure.action) for stage, failure in report.failures if failure.action.withholds]
    stage = failed[0][0] if failed else "output"
    return [_Withheld(stage, actions={action for _, action in failed} or {report.action})]


def _told(served: Served, finding: Finding) -> dict[str, Any]:
    kinds = {spec.title: spec.guard for spec in (*served.spec.input, *served.spec.output)}
    return {
        "guard": finding.guard,
        "kind": kinds.get(finding.guard, finding.guard),
        "entity_type": finding.entity_type,
        "start": finding.start,
        "end": finding.end,
        "score": round(finding.score, 4),
        "action": finding.action.name.lower(),
    }
