"""The one protocol that every guard follows, for inputs, whole replies and streams alike.

A guard opens an `Examination` for each text. The text grows, the examination answers with a `Step`:
what it has found, and up to where it is sure. What it answers must depend on the text alone, never on
how the text was cut into chunks; everything the stream contract promises rests on that.

Work of more than a millisecond does not run inside `advance`: it is described as a `Job`, which the
caller runs in a guard worker and hands back. Regions with an unanswered job are not released.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from guardrails.verdict import Action, Finding
from policies.alignment import JudgeModel

Stage = Literal["input", "output"]
Channel = Literal["content", "reasoning", "tool_arguments", "tool_input", "refusal"]
"""`tool_arguments` are JSON; `tool_input` is the text that a custom tool is called with, in any form."""
Scope = Literal["pattern", "segment", "document"]
Turn = tuple[str, str]
"""A role and what it said."""


@dataclass(frozen=True, slots=True)
class Context:
    """Where a text stands: which side of the model, who wrote it, and what it answers.

    `turns` is the conversation as the engine is given it, for guards that ask a judge: up to and with this
    text where it is an input, up to what is answered where it is a reply. Empty where it isn't known.
    """

    stage: Stage = "output"
    role: str = "assistant"
    channel: Channel = "content"
    prompt: str = ""
    tool_name: str | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What one look at a text gave: findings, and every category's score, flagged or not."""

    findings: Sequence[Finding] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """Inference that a guard needs before the region `[start, end)` may be released.

    `servable` names what must run (see `guardrails.runtime`), `payload` is picklable, and `read` turns
    the servable's result into an answer in the offsets of the examined text.
    """

    start: int
    end: int
    servable: str
    payload: Any
    read: Callable[[Any], Answer] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Step:
    """What an examination knows after the text so far.

    `settled`: every finding that starts before this offset has been reported, now or earlier, or is the
    subject of a job already handed out. Never decreases; what is reported or handed out now starts at or
    after the last step's `settled`. A finding may end beyond it: its span is held until it is settled.
    `findings`, `scores` and `jobs` are those that are new since the last step; scores of one category are
    merged by their maximum.
    """

    settled: int
    findings: Sequence[Finding] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    jobs: Sequence[Job] = ()


class Examination(Protocol):
    """One text under examination by one guard."""

    def advance(self, text: str, final: bool) -> Step:
        """Look at `text`, all that has arrived so far; `final` says that nothing follows.

        With `final`, `settled` is `len(text)`.
        """
        ...


class Guard(Protocol):
    """A configured guard. Stateless and shared by all requests; state lives in its examinations."""

    @property
    def name(self) -> str:
        """The label that findings carry: the guard's file name, or the policy's own label for it."""
        ...

    @property
    def scope(self) -> Scope:
        """How much look-ahead it needs: a pattern's suffix, a segment, or the whole document."""
        ...

    @property
    def action(self) -> Action:
        """The strongest action that its findings carry."""
        ...

    @property
    def changes_text(self) -> bool:
        """Whether its findings replace text (redact, mask, hash, rewrite), so that the engine must wait."""
        ...

    @property
    def on_error(self) -> Action:
        """What follows when it fails or is late: BLOCK, ESCALATE or ALLOW."""
        ...

    @property
    def deadline(self) -> float:
        """Seconds that one of its jobs may take, waiting included."""
        ...

    @property
    def servables(self) -> frozenset[str]:
        """The servables that its jobs name; empty for a guard that runs entirely in the gateway."""
        ...

    def examine(self, context: Context) -> Examination:
        """Begin to examine one text."""
        ...


@runtime_checkable
class ReadsRaw(Protocol):
    """A guard that is shown a tool call's arguments as they are. All others are shown what the JSON says
    (`guardrails.in_json`)."""

    @property
    def reads_raw(self) -> Literal[True]: ...


@runtime_checkable
class AsksJudge(Protocol):
    """A guard whose jobs are questions to a model behind HTTP, which no guard worker serves.

    Their payloads are `guardrails.judging.Question`.
    """

    @property
    def asks(self) -> JudgeModel: ...


class JobRunner(Protocol):
    """Where jobs run: in the workers of `guardrails.runtime.Runtime`, or at a judge that the service asks."""

    async def run(self, servable: str, payload: Any, timeout: float) -> Any:
        """The servable's result for `payload`.

        Raises `guardrails.guard.JobError` when what runs it fails, dies, is overloaded, is late or, a judge,
        can't be reached or answers nonsense.
        """
        ...


Reason = Literal["timeout", "worker_died", "failed", "overloaded", "unreachable", "nonsense"]


class JobError(Exception):
    """A job was not answered; `reason` is one of a small closed set, fit for a metric's label."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
