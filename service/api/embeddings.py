"""`/v1/embeddings`: passed through to the engine under the policy's model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson

from service.catalog import Catalog
from service.engine.errors import UpstreamError
from service.http import Call
from service.limits import Limiter
from service.openai.errors import from_engine
from service.openai.types import EmbeddingRequest

PATH = "/v1/embeddings"


class Embeddings:
    """The endpoint's handler."""

    def __init__(self, catalog: Catalog, limiter: Limiter) -> None:
        self._catalog = catalog
        self._limiter = limiter

    async def embed(
        self, call: Call, request: EmbeddingRequest, payload: dict[str, Any]
    ) -> Mapping[str, Any]:
        """The engine's answer, under the policy's name. Texts aren't examined: nothing is generated."""
        while self._catalog.held is not None:  # another swap may have begun before this one's end is noticed
            await self._catalog.held.wait()
        served = self._catalog.get(request.model, call.caller)
        call.policy = served.name
        payload["model"] = served.target.model
        began = time.perf_counter()
        served.enter()
        try:
            reply = await served.target.engine.complete(
                PATH, orjson.dumps(payload), {"x-request-id": call.id}
            )
        except UpstreamError as error:
            raise from_engine(error) from error
        finally:
            served.leave()
            call.upstream_s += time.perf_counter() - began
        call.headers += served.headers
        answer: dict[str, Any] = orjson.loads(reply.body)
        if "model" in answer:
            answer["model"] = served.name
        usage = answer.get("usage")
        if call.caller is not None and isinstance(usage, dict) and isinstance(usage.get("total_tokens"), int):
            await self._limiter.charge(call.caller, usage["total_tokens"])
        return answer
