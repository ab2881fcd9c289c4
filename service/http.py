"""The little of HTTP that raw ASGI endpoints need: one call's record, its body, its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import orjson

from service.auth import Caller
from service.openai.errors import ApiError, BadRequest, PayloadTooLarge, RequestTimeout

Scope = MutableMapping[str, Any]
MessageDict = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MessageDict]]
Send = Callable[[MessageDict], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON_TYPE: Header = (b"content-type", b"application/json")


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


class Call:
    """What is known about one HTTP call while it lasts: the middlewares' and the endpoint's shared record.

    Times are seconds of `time.perf_counter`. `upstream_s` is the time for which the call did nothing but
    wait for the engine, `client_s` for the client's own body; what is left of its duration is Keel's.
    """

    __slots__ = (
        "caller",
        "client_gone",
        "client_s",
        "error",
        "headers",
        "id",
        "policy",
        "route",
        "started",
        "state",
        "status",
        "stream",
        "upstream_s",
    )

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        self.started = time.perf_counter()
        self.client_s = 0.0
        self.upstream_s = 0.0
        self.status = 0
        self.route = "other"
        self.policy = ""
        self.stream = False
        self.state = "received"
        self.caller: Caller | None = None
        self.error: str | None = None
        self.client_gone = False
        self.headers: list[Header] = [(b"x-request-id", request_id.encode("ascii"))]

    def overhead(self) -> float:
        """Seconds that this call has spent in Keel itself so far."""
        return max(0.0, time.perf_counter() - self.started - self.upstream_s - self.client_s)


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a header; `name` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int, timeout: float) -> bytes:
    """The whole body.

    Raises `PayloadTooLarge` beyond `max_bytes`, before the rest is read where the length was announced,
    `RequestTimeout` where it isn't there after `timeout` seconds, `ClientGone` where it never will be.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > max_bytes:
        raise PayloadTooLarge(f"the body has {int(announced)} bytes; the limit is {max_bytes}")
    message = await receive_or_timeout(receive, timeout)
    if not message.get("more_body"):
        body = message.get("body", b"")
        if len(body) > max_bytes:
            raise PayloadTooLarge(f"the body is larger than the limit of {max_bytes} bytes")
        return bytes(body)
    call: Call = scope["keel"]
    began = time.perf_counter()
    body = bytearray(message.get("body", b""))
    while message.get("more_body"):
        if len(body) > max_bytes:
            raise PayloadTooLarge(f"the body is larger than the limit of {max_bytes} bytes")
        message = await receive_or_timeout(receive, timeout - (time.perf_counter() - began))
        body += message.get("body", b"")
    if len(body) > max_bytes:
        raise PayloadTooLarge(f"the body is larger than the limit of {max_bytes} bytes")
    call.client_s += time.perf_counter() - began
    return bytes(body)


async def receive_or_timeout(receive: Receive, timeout: float) -> MessageDict:
    """The next piece of the body."""
    try:
        async with asyncio.timeout(timeout):
            message = await receive()
    except TimeoutError:
        raise RequestTimeout("the request's body did not arrive in time") from None
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


def parse_json(body: bytes) -> dict[str, Any]:
    """The body's JSON object. Raises `BadRequest` for anything else; RFC 8259, so no NaN or Infinity."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not body:
            raise BadRequest("the request has no body; it takes a JSON object", code="invalid_json") from None
        raise BadRequest(
            f"the body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})",
            code="invalid_json",
        ) from None
    if not isinstance(parsed, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    return parsed


async def send_response(
    send: Send, status: int, body: bytes, headers: Iterable[Header] = (JSON_TYPE,)
) -> None:
    """A whole response."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", b"%d" % len(body))],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError) -> None:
    """An error in OpenAI's form."""
    await send_response(send, error.status, error.body(), (JSON_TYPE, *error.headers))


async def watch_for_disconnect(call: Call, receive: Receive, task: asyncio.Task[Any] | None) -> None:
    """Cancel `task` as soon as the client goes away. Run beside it, after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.client_gone = True
    if task is not None:
        task.cancel()
