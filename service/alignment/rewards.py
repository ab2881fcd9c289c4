"""The reward models of a policy, asked as one: a number for each reply to a conversation.

The embedded ones run in the guard workers, others behind a vLLM's `/classify`. Several are an ensemble, whose
score is the members' mean less their standard deviation times `uncertainty`: where they disagree, nobody has
seen data, and a reply must not be chosen for that (Coste et al. 2023, arXiv:2310.02743).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import orjson

from guardrails.guard import JobError, JobRunner
from guardrails.reward import RewardCheckpoint, Turn, reward_checkpoint
from guardrails.servable import ServableSpec
from policies.alignment import RewardModels
from policies.base import Upstream
from policies.registry import Registry
from service.alignment.rewards_server import RewardServerClient
from service.alignment.strategy import Payload
from service.alignment.waiting import together
from service.engine.engine import Engine
from service.engine.errors import ConnectError, ProtocolError, Refused, UpstreamError, UpstreamTimeout

Reason = Literal["timeout", "unreachable", "failed", "invalid"]
Conversation = tuple[Turn, ...]
ROLES = {"system": "system", "developer": "system", "assistant": "assistant"}


class RewardError(Exception):
    """Replies could not be scored; `reason` is one of a small closed set, fit for a metric's label."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: Reason = reason


class Servers(Protocol):
    """Where reward models' servers are had: `service.engines.Engines`."""

    def server(self, upstream: Upstream) -> Engine: ...


class Member(Protocol):
    """One reward model, or the several of one checkpoint."""

    async def scores(self, conversation: Conversation, replies: Sequence[str], seconds: float) -> Any:
        """For each of its models a score for each reply, `[M][N]`."""
        ...


class EmbeddedReward:
    """A checkpoint in the guard workers. Replies asked for in one turn of the loop share a batch there."""

    def __init__(self, checkpoint: RewardCheckpoint, weights: Mapping[str, float], runner: JobRunner) -> None:
        self._servable = checkpoint.servable.name
        self._mixing = [about.mixing(weights) for about in checkpoint.members]
        self._runner = runner

    async def scores(
        self, conversation: Conversation, replies: Sequence[str], seconds: float
    ) -> list[list[float]]:
        answers = await together(
            *(self._runner.run(self._servable, (conversation, reply), seconds) for reply in replies)
        )
        return [
            [
                sum(weight * score for weight, score in zip(mixing, answer[member], strict=True))
                for answer in answers
            ]
            for member, mixing in enumerate(self._mixing)
        ]


class Reward:
    """All of a policy's reward models."""

    def __init__(
        self,
        members: Sequence[Member],
        *,
        uncertainty: float = 1.0,
        deadline: float = 5.0,
        engines: Sequence[Engine] = (),
        servables: Mapping[str, ServableSpec] | None = None,
        models: Sequence[str] = (),
    ) -> None:
        """`deadline` is in seconds, for one call of `score`; `models` are told beside the scores."""
        self._members = members
        self._uncertainty = uncertainty
        self._deadline = deadline
        self.engines = engines
        self.servables: Mapping[str, ServableSpec] = servables or {}
        self.models = tuple(models)

    async def score(self, conversation: Conversation, replies: Sequence[str]) -> list[float]:
        """A score for each reply, higher is better; equal replies are asked about once.

        Raises `RewardError`, after the deadline at the latest.
        """
        unique = list(dict.fromkeys(replies))
        if not unique:
            return []
        try:
            async with asyncio.timeout(self._deadline):
                groups = await together(
                    *(member.scores(conversation, unique, self._deadline) for member in self._members)
                )
        except TimeoutError:
            raise RewardError("timeout") from None
        except JobError as error:
            raise RewardError("timeout" if error.reason == "timeout" else "failed", error.reason) from error
        except UpstreamError as error:
            raise RewardError(_reason(error), type(error).__name__) from error
        rows = [row for group in groups for row in group]
        if any(len(row) != len(unique) or not all(map(math.isfinite, row)) for row in rows):
            raise RewardError("invalid", "a score is missing or no finite number")
        scores = {reply: self._combine([row[column] for row in rows]) for column, reply in enumerate(unique)}
        return [scores[reply] for reply in replies]

    def _combine(self, scores: Sequence[float]) -> float:
        mean = sum(scores) / len(scores)
        deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
        return mean - self._uncertainty * deviation


def _reason(error: UpstreamError) -> Reason:
    if isinstance(error, UpstreamTimeout):
        return "timeout"
    if isinstance(error, (ConnectError, Refused)):
        return "unreachable"
    return "invalid" if isinstance(error, ProtocolError) else "failed"


def make_reward(spec: RewardModels, registry: Registry, runner: JobRunner, engines: Servers) -> Reward:
    """The reward models that `spec` names. Loads nothing; raises `RegistryError` where one isn't there."""
    members: list[Member] = []
    asked: list[Engine] = []
    servables: dict[str, ServableSpec] = {}
    models: list[str] = []
    for model in spec.models:
        if isinstance(model, str):
            checkpoint = reward_checkpoint(model, registry)
            servables[checkpoint.servable.name] = checkpoint.servable
            models.append(checkpoint.servable.name)
            members.append(EmbeddedReward(checkpoint, spec.reward, runner))
        else:
            engine = engines.server(model.upstream)
            asked.append(engine)
            models.append(model.upstream.model)
            members.append(RewardServerClient(model, spec.reward, engine))
    return Reward(
        members,
        uncertainty=spec.uncertainty,
        deadline=spec.deadline_ms / 1e3,
        engines=asked,
        servables=servables,
        models=models,
    )


def conversation_of(payload: Payload) -> Conversation:
    """A request as reward models read it: system, user and assistant turns of text.

    A plain completion's prompt is one user turn; tools' results count as the user's, and what the assistant
    called stands in its turn (`reply_text`).
    """
    if "messages" not in payload:
        return (("user", str(payload["prompt"])),)
    return tuple(
        (ROLES.get(message["role"], "user"), reply_text({"message": message}))
        for message in payload["messages"]
    )


def reply_text(choice: Mapping[str, Any]) -> str:
    """A choice's text: its content, and each call that it makes as a line of JSON. Not its reasoning."""
    if "message" not in choice:
        return str(choice.get("text") or "")
    message = choice["message"]
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content if part.get("text"))
    lines = [content or message.get("refusal") or ""]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        told = {"name": function.get("name"), "arguments": function.get("arguments")}
        lines.append(orjson.dumps(told).decode())
    return "\n".join(line for line in lines if line)
