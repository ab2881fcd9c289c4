"""What is attacked: a server that speaks OpenAI's API, or any callable.

A target answers a conversation with a `Reply`. What it withheld is told apart from what the model itself
declined, since the one is the guards' doing and the other the model's.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import aiohttp

from training.errors import ConfigError, TrainingError
from training.redteam.attack import Message

BlockedAt = Literal["", "input", "output"]
_AGAIN = frozenset({429, 502, 503, 504})
_ATTEMPTS = 5


class TargetError(TrainingError):
    """The target could not be asked; never counted as an attack that was withstood."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `blocked` says on which side of the model guards withheld it; `tools` are its calls."""

    text: str
    blocked: BlockedAt = ""
    tools: str = ""
    findings: tuple[str, ...] = ()
    checkpoint: str = ""


class Target(Protocol):
    """Something to attack."""

    @property
    def name(self) -> str: ...

    async def reply(self, messages: Sequence[Message]) -> Reply:
        """Raises `TargetError`."""
        ...


@dataclass(frozen=True, slots=True)
class CallableTarget:
    """A function from messages to a text or a `Reply`; it may be a coroutine function."""

    function: Callable[[list[Message]], str | Reply | Awaitable[str | Reply]]
    name: str = "callable"

    async def reply(self, messages: Sequence[Message]) -> Reply:
        result = self.function(list(messages))
        answer = await result if inspect.isawaitable(result) else result
        return answer if isinstance(answer, Reply) else Reply(answer)


@dataclass(slots=True)
class HttpTarget:
    """A policy of a gateway, or a model of any OpenAI-compatible server. Use it in an `async with`.

    url:         the server, with or without `/v1`.
    model:       a policy's name.
    api_key_env: the environment variable that holds the key.
    """

    url: str
    model: str
    api_key_env: str | None = None
    max_tokens: int = 96
    temperature: float = 0.0
    seed: int = 0
    concurrency: int = 8
    timeout: float = 120.0
    _session: aiohttp.ClientSession | None = field(default=None, repr=False)
    _room: asyncio.Semaphore | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.model

    async def __aenter__(self) -> Self:
        headers = {}
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            if not key:
                raise ConfigError(
                    f"environment variable {self.api_key_env!r} must hold the key of {self.url}"
                )
            headers["Authorization"] = f"Bearer {key}"
        limits = aiohttp.ClientTimeout(total=self.timeout)
        self._session = aiohttp.ClientSession(headers=headers, timeout=limits)
        self._room = asyncio.Semaphore(self.concurrency)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def reply(self, messages: Sequence[Message]) -> Reply:
        """One reply. Raises `TargetError` for whatever is neither an answer nor a block."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        status, answer, headers = await self._post("/chat/completions", body)
        error = answer.get("error") if isinstance(answer, dict) else None
        if status == 400 and isinstance(error, dict) and error.get("code") == "content_filter":
            return Reply("", "input", findings=_findings(answer))
        if status != 200:
            raise TargetError(f"{self.url}: status {status}: {_message(answer)}")
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            filtered = choice.get("finish_reason") == "content_filter"
            tools = " ".join(str(call["function"]) for call in message.get("tool_calls") or ())
        except (LookupError, TypeError, AttributeError) as error_:
            raise TargetError(f"{self.url}: not a chat completion: {str(answer)[:200]}") from error_
        checkpoint = headers.get("x-keel-checkpoint", "")
        blocked: BlockedAt = _side(answer) if filtered else ""
        return Reply(message.get("content") or "", blocked, tools, _findings(answer), checkpoint)

    async def scores(self, messages: Sequence[Message]) -> dict[str, float]:
        """The input guards' live scores of a conversation, the highest by category (`/v1/checks`)."""
        status, answer, _ = await self._post("/checks", {"model": self.model, "messages": list(messages)})
        if status != 200:
            raise TargetError(f"{self.url}: /v1/checks: status {status}: {_message(answer)}")
        highest: dict[str, float] = {}
        for result in answer["results"]:
            for guard in result["guards"]:
                for category, score in guard["categories"].items():
                    highest[category] = max(float(score), highest.get(category, 0.0))
        return highest

    async def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any, Mapping[str, str]]:
        if self._session is None or self._room is None:
            raise TargetError("a target over HTTP is used in an `async with`")
        url = self.url.rstrip("/").removesuffix("/v1") + "/v1" + path
        async with self._room:
            for attempt in range(_ATTEMPTS):
                try:
                    async with self._session.post(url, json=body) as response:
                        if response.status not in _AGAIN or attempt == _ATTEMPTS - 1:
                            return response.status, await response.json(content_type=None), response.headers
                        wait = float(response.headers.get("Retry-After", 0.5 * 2**attempt))
                except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                    raise TargetError(f"{url}: {type(error).__name__}: {error}") from error
                await asyncio.sleep(min(wait, 20.0))
        raise AssertionError("the last attempt returns or raises")


def _side(answer: Mapping[str, Any]) -> BlockedAt:
    """Which guards a reply that was filtered is owed to, as far as the server tells."""
    told = answer.get("guardrails")
    if isinstance(told, dict):
        withheld = [f for f in told.get("input") or () if f.get("action") in ("block", "escalate")]
        return "input" if withheld else "output"
    return "output"


def _findings(answer: Any) -> tuple[str, ...]:
    told = answer.get("guardrails") if isinstance(answer, dict) else None
    if not isinstance(told, dict):
        return ()
    found = [*(told.get("input") or ()), *(told.get("output") or ())]
    return tuple(sorted({f"{one.get('guard')}:{one.get('entity_type')}" for one in found}))


def _message(answer: Any) -> str:
    try:
        return str(answer["error"]["message"])[:300]
    except (LookupError, TypeError):
        return str(answer)[:300]
