"""The client: many requests at once to a running gateway, and what each reply cost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import aiohttp

from training.bench.workers import BenchError

T = TypeVar("T")
R = TypeVar("R")

TIMEOUT = aiohttp.ClientTimeout(total=300)


@dataclass(frozen=True, slots=True)
class Reply:
    """One request's answer: its texts, and what the gateway says of it.

    `generated` counts the tokens of all candidates, `given` those of `texts`; `scores` are the reward's, one
    for each text. `method` is what was used, `first_s` the seconds to the first text of a stream, which has
    `first_words`. `outcome` and `revision_tokens` are of critique and revision.
    """

    texts: tuple[str, ...]
    given: int
    generated: int
    rounds: int = 1
    method: str = "single"
    scores: tuple[float | None, ...] = ()
    seconds: float = 0.0
    first_s: float = 0.0
    first_words: int = 0
    outcome: str = ""
    revision_tokens: int = 0

    def row(self) -> dict[str, Any]:
        return asdict(self)


async def _each(items: Sequence[T], work: Callable[[T], Awaitable[R]], at_once: int) -> list[R]:
    gate = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with gate:
            return await work(item)

    return await asyncio.gather(*(one(item) for item in items))


def ask_all(
    url: str, policy: str, prompts: Sequence[str], settings: dict[str, Any], *, at_once: int, seed: int
) -> list[Reply]:
    """A reply to each prompt, in order. Raises BenchError for an error, and for a reply without scores."""

    async def run() -> list[Reply]:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:

            async def one(numbered: tuple[int, str]) -> Reply:
                number, prompt = numbered
                body = {
                    "model": policy,
                    "messages": [{"role": "user", "content": prompt}],
                    "seed": seed * 1_000_003 + number * 8_192,
                    **settings,
                }
                began = time.perf_counter()
                if body.get("stream"):
                    return await _streamed(session, url, body, began)
                async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                    payload = await answer.json()
                    if answer.status != 200:
                        raise BenchError(f"{policy}: {answer.status} {payload}")
                return read(payload, time.perf_counter() - began)

            return await _each(list(enumerate(prompts)), one, at_once)

    return asyncio.run(run())


def read(payload: dict[str, Any], seconds: float) -> Reply:
    """A completion object of the gateway."""
    told = (payload.get("guardrails") or {}).get("rerank") or {}
    if "error" in told:
        raise BenchError(f"the replies were not scored: {told['error']}")
    given = payload["usage"]["completion_tokens"]
    revised = (payload.get("guardrails") or {}).get("revise")
    choices = (revised or {}).get("choices", ())
    spent = (revised or {}).get("tokens", {}).values()
    return Reply(
        texts=tuple(choice["message"]["content"] or "" for choice in payload["choices"]),
        given=given,
        generated=told.get("tokens", given),
        rounds=told.get("rounds", 1),
        method=told.get("method", "single"),
        scores=tuple(told.get("scores", ())),
        seconds=seconds,
        outcome="" if revised is None else choices[0]["outcome"] if choices else "unexamined",
        revision_tokens=sum(sum(role.values()) for role in spent),
    )


async def _streamed(session: aiohttp.ClientSession, url: str, body: dict[str, Any], began: float) -> Reply:
    text, first, words = "", 0.0, 0
    last: dict[str, Any] = {}
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise BenchError(f"{body['model']}: {answer.status} {await answer.text()}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            last = chunk if chunk.get("guardrails") or chunk.get("usage") else last
            piece = "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
            if piece and not first:
                first, words = time.perf_counter() - began, len(piece.split())
            text += piece
    told = ((last or {}).get("guardrails") or {}).get("rerank") or {}
    return Reply(
        (text,), 0, told.get("tokens", 0), told.get("rounds", 1), told.get("method", "single"),
        tuple(told.get("scores", ())), time.perf_counter() - began, first, words,
    )  # fmt: skip
