"""Several upstreams that serve the same model: which one a request goes to, when, and how often.

A request takes a slot of the least busy upstream that is up, or waits its turn for one. It is sent again
only while no byte of its reply has come and only after failures that leave nothing half done: an
OpenAI-compatible completion has no side effects, so the worst that a second sending costs is work.
An upstream that says 429 is left to rest while others can take its requests.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from service.engine.breaker import CircuitBreaker
from service.engine.client import Headers, Reply, UpstreamClient
from service.engine.config import PoolLimits
from service.engine.errors import (
    TOO_MANY_REQUESTS,
    ConnectError,
    Interrupted,
    Overloaded,
    Refused,
    Unavailable,
    UpstreamError,
    UpstreamStatusError,
)
from service.engine.event_stream import EventStream
from service.engine.observer import EngineObserver, NullObserver

T = TypeVar("T")

# A Retry-After up to this is waited out within the request; a longer one is handed to the caller.
_PATIENCE_SECONDS = 2.0
_EWMA_WEIGHT = 0.05
# A queue that has not been empty for this share of the longest wait no longer evens out a burst: it only
# makes everybody late. Newcomers may then wait for this share of it.
_STANDING_SHARE = 0.1
# How long an upstream that answered 429 rests where it named no time, and at the most.
_REST_SECONDS = 1.0
_LONGEST_REST_SECONDS = 30.0


class Upstream:
    """One upstream's place in the pool."""

    def __init__(self, client: UpstreamClient, limits: PoolLimits, observer: EngineObserver) -> None:
        self.client = client
        self.name = client.name
        self.in_flight = 0
        self.up = True  # what a supervisor says; the breaker holds what requests say
        self._clock = asyncio.get_running_loop().time
        self._rests_until = 0.0
        self.breaker = CircuitBreaker(limits, self._clock, lambda state: observer.circuit(self.name, state))

    @property
    def hopeless(self) -> bool:
        """Whether waiting for it makes no sense now."""
        return not self.up or self.breaker.blocked

    @property
    def rests(self) -> bool:
        """Whether it has lately had too many requests."""
        return self._rests_until > 0 and self._clock() < self._rests_until

    def rest(self, seconds: float | None) -> None:
        """It said 429, and when to come again, or not when."""
        pause = _REST_SECONDS if seconds is None else min(seconds, _LONGEST_REST_SECONDS)
        self._rests_until = self._clock() + pause


class UpstreamPool:
    """Bounded access to upstreams. Make it inside the running event loop."""

    def __init__(
        self,
        clients: Sequence[UpstreamClient],
        limits: PoolLimits | None = None,
        observer: EngineObserver | None = None,
        on_broken: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`on_broken` is told the upstream of every connection that could not be made or broke, at once.

        Raises `ValueError` where there is no client, or two of one name.
        """
        if not clients or len({client.name for client in clients}) != len(clients):
            raise ValueError("a pool needs at least one upstream, each with a name of its own")
        self.limits = limits or PoolLimits()
        self._observer = observer or NullObserver()
        self.upstreams = [Upstream(client, self.limits, self._observer) for client in clients]
        self._on_broken = on_broken
        self._next = 0  # where the search begins, so that ties go round
        self._waiters: deque[asyncio.Future[Upstream]] = deque()
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.in_flight = 0  # of all upstreams together
        self._seconds = 1.0  # how long a request takes, an exponentially weighted mean
        self._queue_since: float | None = None  # when the queue was last empty; None while it is
        self._loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def ready(self) -> bool:
        """Whether a request that comes now has a chance."""
        return not self._closing and not all(upstream.hopeless for upstream in self.upstreams)

    def check(self, coming: int = 0) -> None:
        """Raises `Refused` where a request that comes now would wait too long for a slot, or for nothing.

        `coming` are requests that were let in and have not asked for theirs yet. The wait is what Little's
        law says of the requests that must end first; one that is let in on it may still prove it wrong.
        """
        if not self.ready:
            raise self._refused(self._unavailable())
        before = self.in_flight + len(self._waiters) + coming - self._capacity()
        if before < 0:
            return
        if before >= self.limits.max_waiting:
            raise self._refused(self._overloaded(f"{before} requests are waiting already"))
        wait = self._wait(before + 1)
        if wait > self._patience():
            raise self._refused(self._overloaded(f"a slot would be free in {wait:.1f} s"))

    async def complete(
        self, path: str, body: bytes | None, headers: Headers | None = None, *, method: str = "POST"
    ) -> Reply:
        """As `UpstreamClient.complete`, on the least busy upstream. Raises `Refused` too."""

        async def send(upstream: Upstream) -> Reply:
            began = self._loop.time()
            asking = upstream.client.complete(path, body, headers, method=method)
            reply = await self._attempt(upstream, began, asking)
            self._ended(upstream, began, None)
            return reply

        return await self._with_retries(send)

    async def open_stream(
        self, path: str, body: bytes, headers: Headers | None = None, *, raw: bool = False
    ) -> EventStream:
        """As `UpstreamClient.open_stream`, on the least busy upstream. Raises `Refused` too.

        Returns when the first event is there (with `raw`: the headers), since until then another upstream
        can take over. The slot is free when the stream has ended or is closed.
        """

        async def send(upstream: Upstream) -> EventStream:
            began = self._loop.time()
            asking = upstream.client.open_stream(path, body, headers, raw=raw)
            stream = await self._attempt(upstream, began, asking)

            def ended(error: UpstreamError | None, aborted: bool) -> None:
                if aborted:
                    self._withdrawn(upstream)
                else:
                    self._ended(upstream, began, error)

            stream.on_end = ended
            try:
                if not raw:
                    await stream.prime()
            except BaseException:
                stream.close()
                raise
            upstream.breaker.answered()
            self._observer.first_byte(upstream.name, self._loop.time() - began)
            self._dispatch()
            return stream

        return await self._with_retries(send)

    def set_up(self, name: str, up: bool) -> None:
        """A supervisor's word on an upstream; coming up closes its circuit."""
        for upstream in self.upstreams:
            if upstream.name == name:
                upstream.up = up
                if up:
                    upstream.breaker.reset()
        self._dispatch()

    async def drain(self, seconds: float) -> bool:
        """Take nothing new, send the waiting away, and let what is in flight end. True if all did in time."""
        self._closing = True
        self._dispatch()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    # Attempts

    async def _with_retries(self, send: Callable[[Upstream], Awaitable[T]]) -> T:
        tried: Collection[str] = ()
        last: UpstreamError | None = None
        for attempt in range(1, self.limits.max_attempts + 1):
            try:
                upstream = await self._acquire(tried)
            except Refused as refusal:
                self._refused(refusal)
                raise last or refusal from None
            try:
                return await send(upstream)
            except UpstreamError as error:
                last = error
                tried = (*tried, upstream.name)
                pause = self._pause_before_retry(error, attempt, tried)
                if pause is None:
                    raise
                self._observer.retried(upstream.name, error)
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, upstream: Upstream, began: float, asking: Awaitable[T]) -> T:
        """What the upstream gives; where it gives nothing, its slot is free again."""
        try:
            return await asking
        except UpstreamError as error:
            self._ended(upstream, began, error)
            raise
        except BaseException:
            self._withdrawn(upstream)
            raise

    def _pause_before_retry(self, error: UpstreamError, attempt: int, tried: Collection[str]) -> float | None:
        """Seconds to wait before the next attempt, None where there is to be none."""
        if attempt >= self.limits.max_attempts or self._closing:
            return None
        if isinstance(error, UpstreamStatusError) and error.status == TOO_MANY_REQUESTS:
            return 0.0 if self._another_is_free(tried) else None
        if not error.retryable:
            return None
        if any(u.name not in tried and not u.hopeless for u in self.upstreams):
            return 0.0
        asked = error.retry_after if isinstance(error, UpstreamStatusError) else None
        if asked is not None:
            return asked if asked <= _PATIENCE_SECONDS else None
        backoff = self.limits.retry_backoff_seconds * 2.0 ** (attempt - 1)
        return backoff * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def _another_is_free(self, tried: Collection[str]) -> bool:
        return any(
            u.name not in tried and not u.hopeless and not u.rests and u.in_flight < self.limits.max_in_flight
            for u in self.upstreams
        )

    # Slots

    async def _acquire(self, tried: Collection[str]) -> Upstream:
        if self._closing:
            raise self._unavailable()
        if self._waiters:
            self._dispatch()  # nobody overtakes: what is left after this is for nobody who waits
        upstream = self._pick(tried)
        if upstream is not None:
            self._take(upstream)
            return upstream
        if not self.ready:
            raise self._unavailable()
        if len(self._waiters) >= self.limits.max_waiting:
            raise self._overloaded(f"{len(self._waiters)} requests are waiting already")
        turn: asyncio.Future[Upstream] = self._loop.create_future()
        self._waiters.append(turn)
        self._queue_changed()
        try:
            async with asyncio.timeout(self.limits.max_wait_seconds):
                return await turn
        except TimeoutError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                return turn.result()  # the turn came in the very moment that the time ran out
            raise self._overloaded(f"no slot within {self.limits.max_wait_seconds:g} s") from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._withdrawn(turn.result())
            raise
        finally:
            if turn in self._waiters:
                self._waiters.remove(turn)
                self._queue_changed()

    def _pick(self, tried: Collection[str] = ()) -> Upstream | None:
        best: Upstream | None = None
        best_order = (True, True, 0)
        count = len(self.upstreams)
        for step in range(count):
            upstream = self.upstreams[(self._next + step) % count]
            if (
                not upstream.up
                or upstream.in_flight >= self.limits.max_in_flight
                or not upstream.breaker.may_send()
            ):
                continue
            order = (upstream.name in tried, upstream.rests, upstream.in_flight)
            if best is None or order < best_order:
                best, best_order = upstream, order
        self._next = (self._next + 1) % count
        return best

    def _take(self, upstream: Upstream) -> None:
        upstream.breaker.sent()
        upstream.in_flight += 1
        self.in_flight += 1
        self._idle.clear()
        self._observer.in_flight(upstream.name, upstream.in_flight)

    def _ended(self, upstream: Upstream, began: float, error: UpstreamError | None) -> None:
        seconds = self._loop.time() - began
        if isinstance(error, (ConnectError, Interrupted)):
            self._on_broken(upstream.name)
        self._observer.finished(upstream.name, error, seconds)
        if error is None:
            self._seconds += _EWMA_WEIGHT * (seconds - self._seconds)
            upstream.breaker.succeeded()
        elif error.counts_against_upstream:
            upstream.breaker.failed()
        else:
            upstream.breaker.succeeded()  # a 4xx is an answer
            if isinstance(error, UpstreamStatusError) and error.status == TOO_MANY_REQUESTS:
                upstream.rest(error.retry_after)
        self._free(upstream)

    def _withdrawn(self, upstream: Upstream) -> None:
        upstream.breaker.withdrawn()
        self._free(upstream)

    def _free(self, upstream: Upstream) -> None:
        upstream.in_flight -= 1
        self.in_flight -= 1
        self._observer.in_flight(upstream.name, upstream.in_flight)
        if self._waiters:
            self._dispatch()
        if not self.in_flight:
            self._idle.set()

    def _dispatch(self) -> None:
        """Give free slots to those who wait, or send them away where none will come."""
        if not self._waiters:
            return
        hope = self.ready
        while self._waiters:
            if self._waiters[0].done():
                self._waiters.popleft()
                continue
            if not hope:
                self._waiters.popleft().set_exception(self._unavailable())
                continue
            upstream = self._pick()
            if upstream is None:
                break
            self._take(upstream)
            self._waiters.popleft().set_result(upstream)
        self._queue_changed()

    def _queue_changed(self) -> None:
        if not self._waiters:
            self._queue_since = None
        elif self._queue_since is None:
            self._queue_since = self._loop.time()
        self._observer.waiting(len(self._waiters))

    def _patience(self) -> float:
        """Seconds that a newcomer may have to wait."""
        longest = self.limits.max_wait_seconds
        shortest = longest * _STANDING_SHARE
        standing = self._queue_since is not None and self._loop.time() - self._queue_since > shortest
        return shortest if standing else longest

    def _capacity(self) -> int:
        return self.limits.max_in_flight * sum(not u.hopeless for u in self.upstreams)

    def _wait(self, requests: int) -> float:
        """Seconds until so many requests have ended."""
        return self._seconds * requests / max(1, self._capacity())

    def _refused(self, refusal: Refused) -> Refused:
        self._observer.refused(refusal)
        return refusal

    def _unavailable(self) -> Unavailable:
        if self._closing:
            return Unavailable("the gateway is shutting down", retry_after=1)
        if not any(upstream.up for upstream in self.upstreams):
            return Unavailable("the model server is not ready", retry_after=5)
        wait = min(u.breaker.seconds_until_probe for u in self.upstreams if u.up)
        return Unavailable("no upstream answers at present", retry_after=max(1, math.ceil(wait)))

    def _overloaded(self, why: str) -> Overloaded:
        wait = self._wait(len(self._waiters) + 1)
        return Overloaded(f"too many requests: {why}", retry_after=min(60, max(1, math.ceil(wait))))
