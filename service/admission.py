"""Whether a generation request is let in: one that would wait too long is refused before it costs anything.

Without this, an overload is worse than a full house. Every request is examined by the guards before the
engine's queue can turn it away, so that the guards' queue grows beyond their deadlines; a guard that is late
withholds, and harmless requests are answered as if they had been blocked, at the price of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from guardrails.runtime import Runtime
from service.catalog import Served
from service.engine.engine import Engine
from service.engine.errors import Refused
from service.openai.errors import ApiError, Unavailable, from_engine
from service.telemetry.metrics import Metrics, child

# The share of a guard's deadline that its jobs may have to wait for a worker: the rest is for the work itself
# and for the replies of the requests that are let in, which are examined too.
WAITING_SHARE = 0.25


class Admission:
    """Lets generation requests in while guards and engine can be expected to get to them in time."""

    def __init__(self, runtime: Runtime, metrics: Metrics, served: Callable[[], Iterable[Served]]) -> None:
        """`served` gives all policies."""
        self._runtime = runtime
        self._rejected = metrics.rejected
        self._served = served
        self._coming: dict[Engine, int] = {}  # let in, and not asking the engine yet
        self._examining = 0

    def check(self, served: Served) -> None:
        """Raises `Unavailable` where a request to this policy would wait too long."""
        refusal = self._refusal(served)
        if refusal is not None:
            raise self._counted(refusal)

    def check_all(self) -> None:
        """Raises `Unavailable` where a request would wait too long whichever policy it is for.

        That can be said before the request's body is read.
        """
        refusal: ApiError | None = None
        for served in self._served():
            refusal = self._refusal(served)
            if refusal is None:
                return
        if refusal is not None:
            raise self._counted(refusal)

    def _counted(self, refusal: ApiError) -> ApiError:
        reason = "no_engine" if refusal.code == "engine_unavailable" else "overloaded"
        child(self._rejected, reason).inc()
        return refusal

    @contextmanager
    def on_the_way(self, served: Served) -> Iterator[None]:
        """A request that was let in is examined, and will ask the engine when the block has ended."""
        engine = served.target.engine
        self._coming[engine] = self._coming.get(engine, 0) + 1
        self._examining += 1
        try:
            yield
        finally:
            self._examining -= 1
            self._coming[engine] -= 1
            if not self._coming[engine]:
                del self._coming[engine]

    def _refusal(self, served: Served) -> ApiError | None:
        wait = self._runtime.expected_wait(self._examining)
        if wait > 0 and wait > WAITING_SHARE * served.patience:
            return Unavailable(
                "the gateway has as many texts to examine as it can in time",
                code="overloaded",
                retry_after=wait,
            )
        engine = served.target.engine
        try:
            engine.check(self._coming.get(engine, 0))
        except Refused as refusal:
            return from_engine(refusal)
        return None
