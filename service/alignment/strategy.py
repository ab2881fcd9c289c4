"""How a policy's reply comes about where that takes more than one request to its engine.

A `Strategy` makes a whole reply; what becomes of it from there on (moderation, streaming, metrics) is what
becomes of any reply. A policy without one never gets here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import orjson

from guardrails.guard import JobRunner
from guardrails.servable import ServableSpec
from policies.registry import Registry
from service.alignment.versions import answering
from service.engine.engine import Engine
from service.engine.errors import ProtocolError
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:  # they know the catalog, which knows this module
    from service.catalog import Served
    from service.engines import Engines
    from service.generation import Generation
    from service.request import Examined

Payload = dict[str, Any]
"""A whole completion object in the engine's shape."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """What a strategy gives.

    payload: the choices that the caller gets, with their `usage`.
    summary: what the response's `guardrails` field tells of it, such as `{"rerank": {…}}`; no text.
    """

    payload: Payload
    summary: Mapping[str, Any] = field(default_factory=dict)


class Strategy(Protocol):
    """One way of making a reply. Shared by all requests of a policy; keeps nothing of any of them."""

    @property
    def engines(self) -> Sequence[Engine]:
        """The engines that it asks, beside the policy's own."""
        ...

    @property
    def servables(self) -> Mapping[str, ServableSpec]:
        """What must run in the guard workers for it."""
        ...

    async def answer(self, generation: Generation, examined: Examined) -> Aligned:
        """The reply to a request whose text changes no more (`generation.whole_request`).

        Raises `UpstreamError` where the engine fails, an `ApiError` where the policy wants no reply. When
        cancelled, it cancels all that it asked for.
        """
        ...


@runtime_checkable
class StreamingStrategy(Strategy, Protocol):
    """A strategy that knows parts of its reply before the whole, and gives them to who streams."""

    def blocks(self, generation: Generation, examined: Examined) -> AsyncGenerator[Payload, None]:
        """Chunks in the engine's shape, the last of them with the reasons why the choices ended.

        Raises what `answer` does. Keeps the report's `summary` up to date.
        """
        ...


@dataclass(frozen=True, slots=True)
class Means:
    """What strategies are made with.

    `served` finds another policy, at the time of a request; `state_dir` is for what they keep.
    """

    engines: Engines
    runner: JobRunner
    registry: Registry
    metrics: Metrics
    served: Callable[[str], Served]
    state_dir: Path


@dataclass(frozen=True, slots=True)
class Single:
    """The engine's own reply: what other strategies begin with."""

    engines: Sequence[Engine] = ()
    servables: Mapping[str, ServableSpec] = field(default_factory=dict)

    async def answer(self, generation: Generation, examined: Examined) -> Aligned:
        return Aligned(await ask(generation, generation.whole_request()))


async def ask(generation: Generation, body: Payload, path: str | None = None) -> Payload:
    """One request to the policy's engine, under the caller's trace. Raises `UpstreamError`."""
    async with answering(generation) as target:
        asked = orjson.dumps({**body, "model": target.model})
        reply = await target.engine.complete(path or generation.path, asked, generation.upstream_headers)
    return parse(reply.body, reply.upstream)


def parse(body: bytes, upstream: str) -> Payload:
    """A completion object with its choices. Raises `ProtocolError` for anything else."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        payload = None
    choices = payload.get("choices") if isinstance(payload, dict) else None
    if not isinstance(choices, list) or not all(map(_readable, choices)):
        raise ProtocolError("sent a reply that is no completion", upstream=upstream)
    return payload  # type: ignore[no-any-return]  # seen above


def _readable(choice: Any) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message", {}), dict)
