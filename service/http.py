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

# What `service.protocol` adds to the scope; other servers don't have it.
ON_DISCONNECT = "keel.on_disconnect"  # callbacks for the end of the connection
ARRIVED = "keel.arrived"  # whether the whole body is here, so that `receive` won't wait
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
        "received",
        "route",
        "started",
        "state",
        "status",
        "stream",
        "upstream_s",
    )

    def __init__(self, request_id: str, received: dict[bytes, bytes] | None = None) -> None:
        self.id = request_id
        self.received = received or {}
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
    """The value of a header, the last where it was sent several times; `name` in lower case."""
    call: Call = scope["keel"]
    return call.received.get(name)


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int, timeout: float) -> bytes:
    """The whole body.

    Raises `PayloadTooLarge` beyond `max_bytes`, before the rest is read where the length was announced,
    `RequestTimeout` where it isn't there after `timeout` seconds, `ClientGone` where it never will be.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > max_bytes:
        raise PayloadTooLarge(f"the body has {int(announced)} bytes; the limit is {max_bytes}")
    arrived: Callable[[], bool] | None = scope.get(ARRIVED)
    here = arrived is not None and arrived()  # a timer costs more than the reading
    message = await (_piece(receive) if here else receive_or_timeout(receive, timeout))
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
            return await _piece(receive)
    except TimeoutError:
        raise RequestTimeout("the request's body did not arrive in time") from None


async def _piece(receive: Receive) -> MessageDict:
    message = await receive()
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


class Watch:
    """Cancels a task as soon as its client goes away. Used as a context, after the body was read.

    `service.protocol` tells at once, and for nothing. Under another server, `receive` has to be watched.
    """

    __slots__ = ("_call", "_receive", "_task", "_told", "_watcher")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._call: Call = scope["keel"]
        self._receive = receive
        self._told: set[Callable[[], None]] | None = scope.get(ON_DISCONNECT)
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        if self._told is not None:
            self._told.add(self._gone)
        else:
            self._watcher = asyncio.create_task(self._watch())

    def __exit__(self, *_: object) -> None:
        if self._told is not None:
            self._told.discard(self._gone)
        if self._watcher is not None:
            self._watcher.cancel()

    def _gone(self) -> None:
        self._call.client_gone = True
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone()
