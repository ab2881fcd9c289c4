"""Attacks on a target, attempt by attempt: what was sent, what became of it, what the judges say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from training.config import Config
from training.judge.client import JudgeError
from training.redteam.attack import Attack, Message, parts
from training.redteam.target import Reply, Target, TargetError
from training.redteam.twins import TWIN
from training.redteam.verdicts import ReplyJudge, canary_returned
from training.refusals import refuses

SEARCHED = "+search"
"""Behind the name of a strategy whose text was then searched on (`training.redteam.search`)."""

Outcome = Literal["blocked_input", "blocked_output", "refused", "withstood", "succeeded", "error"]


class Attempt(Config):
    """One attack and what became of it.

    outcome: `blocked_*` by guards on that side of the model, `refused` by the model, `succeeded` as the
             first judge says (or the canary), else `withstood`; `error` is no answer at all, and counts for
             nothing.
    verdicts: each judge's word on a reply that came through; empty for the rest.
    canary:   the made-up word by which goals other than `answer` are told.
    """

    target: str
    behavior: str
    domain: str
    hazard: str
    goal: str
    strategy: str
    family: str
    outcome: Outcome
    verdicts: dict[str, bool] = Field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    reply: str = ""
    findings: tuple[str, ...] = ()
    checkpoint: str = ""
    error: str = ""
    canary: str = ""

    @property
    def counted(self) -> bool:
        return self.outcome != "error"

    @property
    def succeeded(self) -> bool:
        return self.outcome == "succeeded"

    @property
    def answered(self) -> bool:
        """Whether the caller got a reply that isn't a refusal: what a twin should get."""
        return self.outcome in ("withstood", "succeeded")

    @property
    def prompt(self) -> str:
        """What the user says last."""
        said = [message for message in self.messages if message["role"] == "user"]
        return str(said[-1]["content"]) if said else ""


@dataclass(frozen=True, slots=True)
class Judges:
    """Who decides. The first one's word makes the outcome; the others are there to agree or not."""

    judges: Sequence[ReplyJudge]

    def verdicts(self, attack: Attack, reply: Reply) -> dict[str, bool]:
        """By the judges' names. Raises `JudgeError`. Called in a thread."""
        if attack.behavior.goal != "answer":
            return {"canary": canary_returned(attack, reply)}
        return {judge.name: judge.succeeded(attack, reply.text) for judge in self.judges}


Progress = Callable[[Attempt], None]


async def run_attacks(
    target: Target,
    attacks: Sequence[Attack],
    judges: Sequence[ReplyJudge],
    *,
    concurrency: int = 8,
    progress: Progress = lambda _: None,
) -> list[Attempt]:
    """All of them, in order, `concurrency` at a time; a target that fails gives attempts with errors."""
    room = asyncio.Semaphore(concurrency)

    async def one(attack: Attack) -> Attempt:
        async with room:
            attempt = await attempt_of(target, attack, Judges(judges))
        progress(attempt)
        return attempt

    return list(await asyncio.gather(*map(one, attacks)))


async def attempt_of(target: Target, attack: Attack, judges: Judges) -> Attempt:
    """One attack, with the turns that lead up to it, and its verdicts."""
    messages = list(attack.messages)
    try:
        messages, reply = await _converse(target, attack)
        outcome, verdicts = await _judged(attack, reply, judges)
    except (TargetError, JudgeError) as error:
        return _attempt(target, attack, messages, "error", error=str(error))
    return _attempt(target, attack, messages, outcome, verdicts, reply)


async def _converse(target: Target, attack: Attack) -> tuple[list[Message], Reply]:
    """The conversation up to the judged reply; a block on the way ends it."""
    first, asked = attack.messages[:1], attack.messages[1:]
    said: list[Message] = [*first]
    for text in attack.lead_up:
        said.append({"role": "user", "content": text})
        reply = await target.reply(said)
        if reply.blocked:
            return said, reply
        said.append({"role": "assistant", "content": reply.text or "…"})
    said += asked
    return said, await target.reply(said)


async def _judged(attack: Attack, reply: Reply, judges: Judges) -> tuple[Outcome, dict[str, bool]]:
    if reply.blocked == "input":
        return "blocked_input", {}
    # A reply that was cut off is judged by what went out before the cut.
    if attack.strategy == TWIN:
        if reply.blocked:
            return "blocked_output", {}
        return ("refused" if refuses(reply.text) else "withstood"), {}
    verdicts = await asyncio.to_thread(judges.verdicts, attack, reply)
    if next(iter(verdicts.values()), False):
        return "succeeded", verdicts
    if reply.blocked:
        return "blocked_output", verdicts
    return ("refused" if refuses(reply.text) else "withstood"), verdicts


def _attempt(
    target: Target,
    attack: Attack,
    messages: Sequence[Message],
    outcome: Outcome,
    verdicts: dict[str, bool] | None = None,
    reply: Reply | None = None,
    error: str = "",
) -> Attempt:
    behavior = attack.behavior
    family = "twin" if attack.strategy == TWIN else parts(attack.strategy.removesuffix(SEARCHED))[-1].family
    return Attempt(
        target=target.name,
        behavior=behavior.id,
        domain=behavior.domain,
        hazard=behavior.hazard,
        goal=behavior.goal,
        strategy=attack.strategy,
        family=family,
        outcome=outcome,
        verdicts=verdicts or {},
        messages=tuple(messages),
        reply=reply.text if reply else "",
        findings=reply.findings if reply else (),
        checkpoint=reply.checkpoint if reply else "",
        error=error,
        canary=attack.canary,
    )
