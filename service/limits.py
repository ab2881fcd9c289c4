"""Requests and tokens per minute and key, through the `limits` package: in memory, or in Redis for replicas.

Requests are counted in a sliding window, before the call. Tokens are known afterwards: a call is admitted
while the window has any left, and what it used is charged when it ends. A storage that can't be reached
refuses calls, unless the settings prefer to admit them.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string
from structlog.typing import FilteringBoundLogger

from service.auth import Caller
from service.http import Call
from service.openai.errors import RateLimited, Unavailable
from service.telemetry.metrics import Metrics

STORAGE_TIMEOUT = 1.0  # seconds
LOGINS_PER_MINUTE = 20  # of one address


class Limiter:
    """Counts callers' requests and tokens."""

    def __init__(
        self,
        uri: str,
        metrics: Metrics,
        log: FilteringBoundLogger,
        on_failure: Literal["refuse", "admit"] = "refuse",
    ) -> None:
        options = {} if uri.startswith("memory") else {"implementation": "redispy"}
        storage = storage_from_string(f"async+{uri}", **options)
        if not isinstance(storage, Storage):
            raise TypeError(f"{uri!r} has no asynchronous storage")
        self._storage = storage
        self._requests = SlidingWindowCounterRateLimiter(storage)
        self._tokens = FixedWindowRateLimiter(storage)
        self._metrics = metrics
        self._log = log
        self._on_failure = on_failure

    async def admit(self, caller: Caller, call: Call) -> None:
        """Count one request. Raises `RateLimited` when a limit is reached; adds `x-ratelimit-*` headers."""
        try:
            async with asyncio.timeout(STORAGE_TIMEOUT):
                await self._admit(caller, call)
        except RateLimited:
            self._metrics.rejected.labels("rate_limited").inc()
            raise
        except Exception as error:
            self._failed(error)
            if self._on_failure == "refuse":
                raise Unavailable(
                    "rate limits can't be checked at present", code="limits_unavailable"
                ) from error

    async def admit_login(self, address: str, call: Call) -> None:
        """Count one try to log in from `address`. Raises as `admit` does."""
        caller = Caller("login", f"login {address}", requests_per_minute=LOGINS_PER_MINUTE)
        try:
            await self.admit(caller, call)
        except RateLimited as error:
            message = (
                f"from this address came {LOGINS_PER_MINUTE} tries to log in within a minute: wait a little"
            )
            raise RateLimited(message, retry_after=error.retry_after) from None

    async def charge(self, caller: Caller, tokens: int) -> None:
        """Count what a request used."""
        if caller.tokens_per_minute is None or tokens <= 0:
            return
        try:
            async with asyncio.timeout(STORAGE_TIMEOUT):
                await self._tokens.hit(
                    RateLimitItemPerMinute(caller.tokens_per_minute), "tokens", caller.sha256, cost=tokens
                )
        except Exception as error:
            self._failed(error)

    async def _admit(self, caller: Caller, call: Call) -> None:
        if caller.tokens_per_minute is not None:
            item = RateLimitItemPerMinute(caller.tokens_per_minute)
            window = await self._tokens.get_window_stats(item, "tokens", caller.sha256)
            _announce(call, "tokens", caller.tokens_per_minute, window.remaining, window.reset_time)
            if window.remaining <= 0:
                raise _limited("tokens", caller.tokens_per_minute, window.reset_time)
        if caller.requests_per_minute is not None:
            item = RateLimitItemPerMinute(caller.requests_per_minute)
            admitted = await self._requests.hit(item, "requests", caller.sha256)
            window = await self._requests.get_window_stats(item, "requests", caller.sha256)
            _announce(call, "requests", caller.requests_per_minute, window.remaining, window.reset_time)
            if not admitted:
                raise _limited("requests", caller.requests_per_minute, window.reset_time)

    async def aclose(self) -> None:
        """Close the storage's connections, where it has any."""
        bridge = getattr(self._storage, "bridge", None)
        if bridge is not None:
            await bridge.storage.aclose()  # the package has no way of its own

    def _failed(self, error: Exception) -> None:
        self._metrics.rejected.labels("limits_unavailable").inc()
        self._log.error("limits_unavailable", error=type(error).__name__)


def _announce(call: Call, what: str, limit: int, remaining: int, reset: float) -> None:
    seconds = max(0.0, reset - time.time())
    call.headers += [
        (f"x-ratelimit-limit-{what}".encode(), b"%d" % limit),
        (f"x-ratelimit-remaining-{what}".encode(), b"%d" % max(0, remaining)),
        (f"x-ratelimit-reset-{what}".encode(), f"{seconds:.3f}s".encode()),
    ]


def _limited(what: str, limit: int, reset: float) -> RateLimited:
    wait = max(1.0, reset - time.time())
    return RateLimited(f"this key has used up its {limit} {what} per minute", retry_after=wait)
