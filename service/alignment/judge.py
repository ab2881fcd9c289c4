"""Who criticises replies: the policy's own model, another policy's, or any OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from policies.alignment import ReviseSpec
from policies.constitution import Constitution
from policies.critique import (
    Case,
    Critique,
    Nonsense,
    critique_messages,
    critique_regex,
    critique_schema,
    read_critique,
)
from service.alignment.strategy import Means, parse
from service.alignment.versions import answering
from service.engine.engine import Engine
from service.engine.errors import UpstreamError, UpstreamTimeout
from service.generation import PATHS, Generation
from service.openai.errors import ModelNotFound

Reason = Literal["timeout", "upstream", "nonsense", "missing"]

ANSWER_TOKENS = 1_024  # of a server whose answer has no other bound
ATTEMPTS = 2


class RevisionError(Exception):
    """A judge or a reviser that could not be asked, or said nothing usable. Never a pass."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Said:
    """A model's answer, and whether it ended by itself ("stop") or ran out of tokens ("length")."""

    text: str
    finish: str


@dataclass(slots=True)
class Spent:
    """Tokens that one side cost, as its server counted them."""

    prompt: int = 0
    completion: int = 0

    def add(self, usage: Any) -> None:
        """Count a reply's `usage`, if it has one."""
        if isinstance(usage, dict):
            self.prompt += _count(usage.get("prompt_tokens"))
            self.completion += _count(usage.get("completion_tokens"))

    def render(self) -> dict[str, int]:
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion}


class Judge:
    """Asks for critiques by one constitution."""

    def __init__(self, spec: ReviseSpec, constitution: Constitution, means: Means) -> None:
        self._means = means
        self._constitution = constitution
        self._policy = spec.judge.policy if spec.judge != "self" else None
        self._server = spec.judge.upstream if spec.judge != "self" else None
        self._engine = means.engines.server(self._server) if self._server else None
        self._form = {"name": "critique", "strict": True, "schema": critique_schema(constitution)}
        self._regex = critique_regex(constitution)

    @property
    def label(self) -> str:
        """Who it is, for people."""
        if self._policy is not None:
            return f"policy {self._policy}"
        return self._server.model if self._server is not None else "self"

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engine that is its own; a policy's belongs to that policy."""
        return (self._engine,) if self._engine is not None else ()

    async def critique(self, case: Case, generation: Generation, spent: Spent) -> Critique:
        """Which principles the case's reply violates. Raises `RevisionError`."""
        for attempt in range(ATTEMPTS):
            async with self._where(generation) as (engine, model):
                body = self._request(case, model, again=attempt > 0, ours=engine.child is not None)
                answer = await ask_for_text(engine, body, generation, spent)
            try:
                return read_critique(answer.text, self._constitution)
            except Nonsense:
                continue
        raise RevisionError("nonsense")

    @asynccontextmanager
    async def _where(self, generation: Generation) -> AsyncIterator[tuple[Engine, str]]:
        """The judge's engine, and what the model is called there."""
        if self._engine is not None and self._server is not None:
            yield self._engine, self._server.model
        elif self._policy is not None:
            try:
                target = self._means.served(self._policy).target
            except ModelNotFound:
                raise RevisionError("missing") from None
            with target.used():
                yield target.engine, target.model
        else:
            async with answering(generation) as target:
                yield target.engine, target.model

    def _request(self, case: Case, model: str, *, again: bool, ours: bool) -> dict[str, Any]:
        """The question. A vLLM of our own is held to an expression under which no answer can be wrong.

        Others are held to a JSON Schema, under which a model may still write white space until its tokens
        run out: the first attempt is cut short there, the second makes repetition costly.
        """
        body: dict[str, Any] = {"model": model, "messages": critique_messages(self._constitution, case)}
        body["temperature"] = 0.7 if again else 0.0
        if ours:
            return {**body, "structured_outputs": {"regex": self._regex}}
        body["response_format"] = {"type": "json_schema", "json_schema": self._form}
        body["max_tokens"] = ANSWER_TOKENS
        return {**body, **({"frequency_penalty": 1.0} if again else {"stop": ["\n\n\n"]})}


async def ask_for_text(engine: Engine, body: dict[str, Any], generation: Generation, spent: Spent) -> Said:
    """What a model says to `body`, a chat request for one choice. Raises `RevisionError`."""
    try:
        reply = await engine.complete(PATHS["chat"], orjson.dumps(body), generation.upstream_headers)
        payload = parse(reply.body, reply.upstream)
    except UpstreamTimeout:
        raise RevisionError("timeout") from None
    except UpstreamError:
        raise RevisionError("upstream") from None
    spent.add(payload.get("usage"))
    choice: dict[str, Any] = next(iter(payload["choices"]), {})
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    finish = "length" if choice.get("finish_reason") == "length" else "stop"
    return Said(content if isinstance(content, str) else "", finish)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
