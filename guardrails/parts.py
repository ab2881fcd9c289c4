"""One text of a request, and what the guards made of it: what chains are given, and what they give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from guardrails.guard import Channel, Context, Stage, Turn
from guardrails.verdict import Action, Finding, Verdict

State = Literal["finished", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Part:
    """One text of a request: whose it is, and what is known about where it stands."""

    role: str
    text: str
    stage: Stage = "input"
    channel: Channel = "content"
    prompt: str = ""
    tool_name: str | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    turns: tuple[Turn, ...] = ()

    @property
    def context(self) -> Context:
        return Context(
            self.stage, self.role, self.channel, self.prompt, self.tool_name, self.tools, self.turns
        )


@dataclass(frozen=True, slots=True)
class GuardReport:
    """What one guard said about one text.

    state:      "finished"; "failed", with `failure` saying how; or "skipped", where the outcome was sure
                without it: it then doesn't speak for the whole text.
    action:     the strongest that follows from its findings and its failure.
    score:      the highest of `categories` (every score that it gave, flagged or not) and its findings'.
    ms:         wall time, waiting for a worker included; 0 where the verdict was remembered (`cached`).
    """

    guard: str
    state: State
    action: Action = Action.ALLOW
    score: float = 0.0
    categories: Mapping[str, float] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    ms: float = 0.0
    failure: str | None = None
    cached: bool = False


@dataclass(frozen=True, slots=True)
class PartResult:
    """What became of one text. `text` may be used in its place; what a verdict withholds is cut off."""

    part: Part
    verdict: Verdict
    text: str
    reports: tuple[GuardReport, ...] = ()

    @property
    def changed(self) -> bool:
        return self.text != self.part.text


@dataclass(frozen=True, slots=True)
class ChainResult:
    """What became of all texts, in their order."""

    parts: tuple[PartResult, ...] = ()

    @property
    def action(self) -> Action:
        return max((result.verdict.action for result in self.parts), default=Action.ALLOW)

    @property
    def verdict(self) -> Verdict:
        """All parts' findings and failures; spans are each in their own part's text."""
        verdict = Verdict()
        for result in self.parts:
            verdict = verdict.merge(result.verdict)
        return verdict
