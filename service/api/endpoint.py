"""A POST endpoint that takes one JSON object and answers with another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from service.http import Call, Receive, Scope, Send, parse_json, read_body, send_response
from service.openai.validation import explain
from service.settings import Limits

M = TypeVar("M", bound=BaseModel)


class JsonEndpoint(Generic[M]):
    """`handle` gets the call, the validated request and the body's object, and returns the answer's."""

    def __init__(
        self,
        model: type[M],
        handle: Callable[[Call, M, dict[str, Any]], Awaitable[Mapping[str, Any] | bytes]],
        limits: Limits,
    ) -> None:
        self._adapter: TypeAdapter[M] = TypeAdapter(model)
        self._handle = handle
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(
            scope, receive, max_bytes=self._limits.max_body_bytes, timeout=self._limits.body_timeout_s
        )
        payload = parse_json(body)
        try:
            request = self._adapter.validate_python(payload)
        except ValidationError as error:
            raise explain(error) from None
        call: Call = scope["keel"]
        answer = await self._handle(call, request, payload)
        call.state = "finished"
        await send_response(send, 200, answer if isinstance(answer, bytes) else orjson.dumps(answer))
