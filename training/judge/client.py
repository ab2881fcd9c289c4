"""A small client of any server that speaks OpenAI's chat API, for questions that need one whole answer.

Synchronous and safe to call from many threads: requests run on one event loop in a thread of its own, at
most `concurrency` at a time. A request is sent again only while no byte of an answer has arrived: after a
refused or broken connection, and for the statuses with which a server says "not now" (RFC 9110 section 15.6
and RFC 6585 section 4), as late as its Retry-After asks. Whatever else goes wrong is a `JudgeError`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from pydantic import Field

from training.config import Config
from training.errors import ConfigError, TrainingError

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOST_BYTES = 4 << 20
_LONGEST_WAIT = 30.0  # seconds


class JudgeError(TrainingError):
    """A judge that could not be asked, or gave no usable answer. Never a vote, and never a pass."""


class UnreadableAnswer(JudgeError):
    """An answer arrived, but it is not of the form that was asked for."""


class ServerConfig(Config):
    """Where a model is served, and how patiently it is asked. Times are in seconds.

    The key is read from the environment variable `api_key_env`, never from a file.
    """

    base_url: str = Field(pattern=r"^https?://\S+$")
    model: str
    api_key_env: str | None = None
    concurrency: int = Field(default=8, ge=1, le=1024)
    timeout: float = Field(default=120.0, gt=0)
    connect_timeout: float = Field(default=10.0, gt=0)
    retries: int = Field(default=4, ge=0)
    max_tokens: int = Field(default=768, ge=1)


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token, and the log-probabilities of the likeliest tokens in its place, as bytes."""

    text: bytes
    alternatives: Mapping[bytes, float]


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer; `tokens` is empty where the server gave no log-probabilities."""

    text: str
    tokens: tuple[Token, ...] = ()


class ChatClient:
    """Connections to one server; close it, or use it in a `with`."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises ConfigError where `api_key_env` names a variable that is not set."""
        self.config = config
        self._url = config.base_url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._headers = _headers(config)
        self._jitter = random.Random(0)
        self._session: aiohttp.ClientSession | None = None
        self._room = asyncio.Semaphore(config.concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread; a second call does nothing."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        top_logprobs: int = 0,
        frequency_penalty: float = 0.0,
        stop: str | None = None,
    ) -> Answer:
        """One answer. With a JSON `schema` the server must write nothing else (`response_format`).

        Raises JudgeError, also for an answer that was cut off at `max_tokens`.
        """
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": list(messages),
            "temperature": temperature,
            "max_tokens": self.config.max_tokens,
        }
        if seed is not None:
            body["seed"] = seed
        if frequency_penalty:
            body["frequency_penalty"] = frequency_penalty
        if stop is not None:
            body["stop"] = stop
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        if schema is not None:
            form = {"name": "answer", "strict": True, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return asyncio.run_coroutine_threadsafe(self._chat(body), self._loop).result()

    async def _chat(self, body: dict[str, Any]) -> Answer:
        async with self._room:
            for attempt in range(self.config.retries + 1):
                last = attempt == self.config.retries
                try:
                    content, wait = await self._send(body, last)
                except (aiohttp.ClientConnectionError, ConnectionError) as error:
                    if last:
                        raise JudgeError(f"{self._url}: cannot be reached: {error}") from error
                    content, wait = None, None
                if content is not None:
                    return _answer(content, self._url)
                await asyncio.sleep(self._pause(attempt, wait))
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, body: dict[str, Any], last: bool) -> tuple[bytes | None, float | None]:
        """(the answer, None), or (None, seconds that the server asks to wait) for one more attempt."""
        if self._session is None:
            limits = aiohttp.ClientTimeout(
                total=self.config.timeout, sock_connect=self.config.connect_timeout
            )
            self._session = aiohttp.ClientSession(timeout=limits, trust_env=False)
        try:
            async with self._session.post(
                self._url, json=body, headers=self._headers, allow_redirects=False
            ) as response:
                if response.status in _AGAIN and not last:
                    return None, _retry_after(response.headers.get("Retry-After"))
                content = await _read(response, self._url)
        except TimeoutError as error:
            raise JudgeError(f"{self._url}: no answer within {self.config.timeout:g} s") from error
        except aiohttp.ClientPayloadError as error:
            raise JudgeError(f"{self._url}: the answer broke off: {error}") from error
        if response.status != 200:
            raise JudgeError(f"{self._url}: status {response.status}: {_message(content)}")
        return content, None

    def _pause(self, attempt: int, wait: float | None) -> float:
        if wait is not None:
            return min(wait, _LONGEST_WAIT)
        return min(0.25 * 2.0**attempt, _LONGEST_WAIT) * self._jitter.uniform(0.5, 1.0)

    async def _close(self) -> None:
        if self._session is not None:
            await self._session.close()


async def _read(response: aiohttp.ClientResponse, url: str) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > _MOST_BYTES:
            raise JudgeError(f"{url}: the answer is longer than {_MOST_BYTES >> 20} MiB")
    return bytes(content)


def _headers(config: ServerConfig) -> dict[str, str]:
    if config.api_key_env is None:
        return {}
    key = os.environ.get(config.api_key_env)
    if not key:
        raise ConfigError(
            f"environment variable {config.api_key_env!r} must hold the key of {config.base_url}"
        )
    return {"Authorization": f"Bearer {key}"}


def _retry_after(header: str | None) -> float | None:
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


def _message(content: bytes) -> str:
    """What an error's body says, shortened: OpenAI's form, or the bare text."""
    try:
        return str(json.loads(content)["error"]["message"])[:300]
    except (ValueError, LookupError, TypeError):
        return content[:300].decode("utf-8", "replace")


def _answer(content: bytes, url: str) -> Answer:
    try:
        choice = json.loads(content)["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
        logprobs = (choice.get("logprobs") or {}).get("content") or ()
        tokens = tuple(Token(_bytes(t), _alternatives(t)) for t in logprobs)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise JudgeError(f"{url}: not an OpenAI chat completion: {content[:200]!r}") from error
    if not isinstance(text, str):
        raise UnreadableAnswer(f"{url}: the answer holds no text")
    if reason == "length":
        raise UnreadableAnswer(f"{url}: the answer was cut off; raise max_tokens")
    return Answer(text, tokens)


def _alternatives(token: Mapping[str, Any]) -> dict[bytes, float]:
    listed = [*(token.get("top_logprobs") or ()), token]
    return {_bytes(t): float(t["logprob"]) for t in listed}


def _bytes(token: Mapping[str, Any]) -> bytes:
    """A token's bytes, which its text can't tell where a character is cut in two."""
    given = token.get("bytes")
    return bytes(given) if given is not None else str(token["token"]).encode()
