"""uvicorn's HTTP protocol with the bounds that it lacks, and with errors in OpenAI's form.

uvicorn's httptools protocol reads headers of any size for as long as the client cares to take. Here the
head of a request must be complete within a time and a size (slow loris, RFC 6585 section 5), connections
are bounded, and bytes that aren't HTTP get a JSON error.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.http import ARRIVED, ON_DISCONNECT
from service.openai.errors import ApiError, BadRequest, RequestTimeout, Unavailable


class HeadersTooLarge(ApiError, status=431, type="invalid_request_error", code="headers_too_large"):
    """A request head beyond the limit."""


class OneWrite:
    """A response's transport: what is written at once leaves at once, in one system call and one packet.

    uvicorn writes a response's head and its body apart, and uvloop sends each without waiting. Here the
    first piece waits for the second until the event loop's next turn, and no longer.
    """

    __slots__ = ("_flushing", "_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None
        self._flushing: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:
        """Send bytes, the first ones a turn of the loop later."""
        if self._held is not None:
            data = self._held + data
            self._let_go()
            self._transport.write(data)
        elif self._flushing is None:
            self._held = data
            self._flushing = self._loop.call_soon(self.flush)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send what is held."""
        held = self._held
        if held is not None:
            self._let_go()
            self._transport.write(held)

    def close(self) -> None:
        """Send what is held, and hang up."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection ends or has ended."""
        return self._transport.is_closing()

    def _let_go(self) -> None:
        self._held = None
        if self._flushing is not None:
            self._flushing.cancel()


class _Arrived:
    """Whether a request's whole body is here.

    Holds its cycle weakly: a cycle holds its scope, and a scope that held it would keep both, and the body,
    until the garbage collector comes.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = weakref.ref(cycle)

    def __call__(self) -> bool:
        cycle = self._cycle()
        return cycle is None or not cycle.more_body


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `bounded` makes the class for given limits."""

    max_head_bytes: int = 32 * 1024
    head_timeout_s: float = 10.0
    max_connections: int = 4_096

    @classmethod
    def bounded(
        cls, *, max_head_bytes: int, head_timeout_s: float, max_connections: int
    ) -> type[BoundedProtocol]:
        """This class with limits; uvicorn makes the instances and has no way to pass them."""
        limits = {
            "max_head_bytes": max_head_bytes,
            "head_timeout_s": head_timeout_s,
            "max_connections": max_connections,
        }
        return type("BoundedProtocol", (cls,), limits)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._on_disconnect: set[Callable[[], None]] = set()
        if len(self.connections) > self.max_connections:
            self._refuse(Unavailable("the gateway has as many connections as it can take", code="overloaded"))
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        for tell in tuple(self._on_disconnect):
            tell()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or not self._head_bytes:
            return
        if self._head_bytes > self.max_head_bytes:
            self._refuse(HeadersTooLarge(f"the request's head is larger than {self.max_head_bytes} bytes"))
        elif self._head_timer is None:
            self._arm()  # a further request on this connection has begun

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()
        self.scope[ON_DISCONNECT] = self._on_disconnect  # type: ignore[literal-required]  # an extension

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._disarm()
        head = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if head > self.max_head_bytes:
            self._refuse(HeadersTooLarge(f"the request's head is larger than {self.max_head_bytes} bytes"))
            return
        super().on_headers_complete()
        cycle = self.cycle
        cycle.transport = OneWrite(self.transport, self.loop)  # type: ignore[assignment]  # what a cycle uses
        self.scope[ARRIVED] = _Arrived(cycle)  # type: ignore[literal-required]  # an extension

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to bytes that aren't HTTP."""
        self._refuse(BadRequest("the bytes received are not a valid HTTP request", code="invalid_http"))

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_late)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self._answering():
            return
        if self._head_bytes == 0:
            self.transport.close()  # connected and silent: nothing to answer
            return
        self._refuse(RequestTimeout("the request's head did not arrive in time"))

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and cycle.response_started and not cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Answer at once, outside ASGI, and hang up."""
        self._disarm()
        if self.transport.is_closing():
            return
        if self._answering():
            self.transport.close()  # an answer here would land in the midst of another
            return
        body = error.body()
        lines: list[bytes] = [STATUS_LINE[error.status]]
        headers: list[tuple[bytes, bytes]] = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *error.headers,
        ]
        for name, value in headers:
            lines += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*lines, b"\r\n", body]))
        self.transport.close()
