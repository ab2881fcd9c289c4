"""A streamed reply of an upstream, read as SSE payloads or as raw bytes, under time limits.

One timer watches one stream. It is not re-armed for every chunk: the reader only moves the deadline, and
the timer, when it fires early, goes to sleep until the new one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import aiohttp
from multidict import CIMultiDictProxy

from service.engine.config import TimeLimits
from service.engine.errors import (
    Aborted,
    InStreamError,
    Interrupted,
    ProtocolError,
    TimeoutKind,
    UpstreamError,
    UpstreamTimeout,
)
from service.engine.sse import SseError, SseParser

_DONE = b"[DONE]"
_ERROR_PREFIXES = (b'{"error"', b'{"object":"error"')
# How long an upstream may take, after `[DONE]`, to end its response so that the connection can be reused.
_LINGER_SECONDS = 1.0


class _Expired(Exception):
    """The watchdog's message to the reader."""


class OpenResponses:
    """The responses of one client that still hold a connection.

    aiohttp does not wake a body's reader when its session closes, so the client closes these itself.
    """

    def __init__(self) -> None:
        self._reading: set[aiohttp.ClientResponse] = set()
        self._lingering: dict[aiohttp.ClientResponse, asyncio.TimerHandle] = {}
        self.add = self._reading.add
        self.discard = self._reading.discard

    def linger(self, response: aiohttp.ClientResponse) -> None:
        """Keep a response that was read to `[DONE]` until its end comes, which makes its connection free."""
        loop = asyncio.get_running_loop()
        self._lingering[response] = loop.call_later(_LINGER_SECONDS, self._drop, response)
        response.content.on_eof(lambda: self._drop(response))

    def close(self) -> None:
        """Close them all; their readers see a lost connection."""
        for response in [*self._lingering]:
            self._drop(response)
        for response in [*self._reading]:
            response.close()
        self._reading.clear()

    def _drop(self, response: aiohttp.ClientResponse) -> None:
        timer = self._lingering.pop(response, None)
        if timer is not None:
            timer.cancel()
            response.close()  # does nothing where the connection went back to the pool


class EventStream:
    """Iterate it for the payload of each event, as bytes, without the closing `[DONE]`.

    The iteration ends only where the reply was complete; every other end raises an `UpstreamError`.
    Close it (`async with`, or `aclose`) as soon as no more is wanted: that aborts the upstream's work.
    One reader at a time. `on_end(error, aborted)` is called once, when the
    upstream has done its part or nothing more is wanted of it.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        *,
        upstream: str,
        times: TimeLimits,
        max_event: int,
        done_required: bool,
        started: float,
        open_responses: OpenResponses,
    ) -> None:
        self.status: int = response.status
        self.headers: CIMultiDictProxy[str] = response.headers
        self.upstream = upstream
        self._response = response
        self._content = response.content
        self._parser = SseParser(max_event)
        self._events: deque[bytes] = deque()
        self._error: UpstreamError | None = None  # raised once the events before it are taken
        self._open_responses = open_responses
        open_responses.add(response)
        self.on_end: Callable[[UpstreamError | None, bool], None] | None = None
        self._done_required = done_required
        self._complete = False
        self._closed = False
        self._given = False  # an event or a chunk has come
        self._times = times
        self._loop = asyncio.get_running_loop()
        self._waiting = False
        self._first_at = started + times.first_token
        self._total_at = started + times.total
        self._deadline = self._armed_for = min(self._first_at, self._total_at)
        self._expired: TimeoutKind | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._arm(self._deadline)

    @property
    def complete(self) -> bool:
        """Whether the reply has ended as it should."""
        return self._complete

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._events:
            await self.prime()
            if not self._events:
                raise StopAsyncIteration
        return self._events.popleft()

    async def prime(self) -> None:
        """Wait until an event can be taken without waiting, or the reply has ended.

        Raises what iterating would raise; events that came before an error are given first.
        """
        if self._events or self._complete:
            return
        self._begin_wait()
        while not self._events and not self._complete:
            self._take_events(await self._receive())
        self._waiting = False
        if self._events:
            self._given = True

    async def raw(self) -> AsyncIterator[bytes]:
        """The reply's bytes as they come, unparsed; the end of the body is the end of the reply."""
        while not self._complete:
            self._begin_wait()
            data = await self._receive()
            self._waiting = False
            if data:
                self._given = True
                yield data
            else:
                self._finish()

    async def aclose(self) -> None:
        """Let go of the connection: reused after a complete reply, else closed at once. Idempotent."""
        self.close()

    def close(self) -> None:
        """As `aclose`, for callers that can't wait."""
        if self._closed:
            return
        self._closed = True
        self._end(None, aborted=True)
        self._open_responses.discard(self._response)
        if self._complete and not self._response.closed:
            self._open_responses.linger(self._response)
        else:
            self._response.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading

    async def _receive(self) -> bytes:
        """The next bytes, b"" at the body's end."""
        if self._error is not None:
            raise self._error
        if self._closed:
            raise Aborted("the stream is closed", upstream=self.upstream, bytes_received=self._given)
        try:
            return await self._content.readany()
        except asyncio.CancelledError:
            self._waiting = False
            raise
        except Exception as error:
            failure = self._failure(error)
            self._fail(failure)
            raise failure from error

    def _take_events(self, data: bytes) -> None:
        if not data:
            self._end_of_body()
            return
        try:
            payloads = self._parser.feed(data)
        except SseError as error:
            self._fail(
                ProtocolError(
                    f"sent a malformed stream: {error}", upstream=self.upstream, bytes_received=self._given
                )
            )
            return
        for payload in payloads:
            if payload == _DONE:
                self._finish()
                return
            if payload.startswith(_ERROR_PREFIXES):
                self._fail(
                    InStreamError(
                        payload, upstream=self.upstream, bytes_received=self._given or bool(self._events)
                    )
                )
                return
            if payload:
                self._events.append(payload)

    def _end_of_body(self) -> None:
        if self._done_required or self._parser.pending:
            self._fail(self._interrupted("the stream ended without its [DONE]"))
        else:
            self._finish()

    def _finish(self) -> None:
        self._complete = True
        self._end(None)

    def _fail(self, error: UpstreamError) -> None:
        """Keep the error for the next read and free the upstream."""
        self._error = error
        self._response.close()
        self._end(error, aborted=isinstance(error, Aborted))

    def _end(self, error: UpstreamError | None, aborted: bool = False) -> None:
        """Tell whoever lent the connection, once, how it went."""
        self._disarm()
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(error, aborted)

    def _failure(self, error: Exception) -> UpstreamError:
        if self._expired is not None:
            return UpstreamTimeout(
                self._expired,
                getattr(self._times, self._expired),
                upstream=self.upstream,
                bytes_received=self._given,
            )
        if self._closed:
            return Aborted("the stream was closed", upstream=self.upstream, bytes_received=self._given)
        return self._interrupted(f"died in mid-stream ({type(error).__name__})")

    def _interrupted(self, message: str) -> Interrupted:
        return Interrupted(message, upstream=self.upstream, bytes_received=self._given)

    # The watchdog

    def _begin_wait(self) -> None:
        if self._error is not None or self._closed:
            return
        limit = self._loop.time() + self._times.idle if self._given else self._first_at
        self._deadline = min(limit, self._total_at)
        self._waiting = True
        if self._deadline < self._armed_for:
            self._arm(self._deadline)

    def _watch(self) -> None:
        now = self._loop.time()
        if now >= self._total_at:
            self._expire("total")
        elif not self._waiting:
            # A slow reader is not the upstream's fault: only the total limit runs on.
            self._arm(min(now + self._times.idle, self._total_at))
        elif now >= self._deadline:
            self._expire("idle" if self._given else "first_token")
        else:
            self._arm(self._deadline)

    def _expire(self, kind: TimeoutKind) -> None:
        self._expired = kind
        self._content.set_exception(_Expired())
        self._disarm()
        self._response.close()

    def _arm(self, when: float) -> None:
        self._disarm()
        self._armed_for = when
        self._timer = self._loop.call_at(when, self._watch)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
