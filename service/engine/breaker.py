"""A circuit breaker (M. Nygard, Release It!, 2007): stop asking an upstream that keeps failing.

closed ──failures in a row──► open ──back-off over──► half open, one probe ──answers──► closed
                               ▲                                └──fails──► open, twice as long
"""

from __future__ import annotations

import random
from collections.abc import Callable

from service.engine.config import PoolLimits
from service.engine.observer import CircuitState


class CircuitBreaker:
    """Passive: it learns from the requests that are made anyway, and makes none of its own.

    `clock` returns seconds. `on_change` is told every new state.
    """

    def __init__(
        self,
        limits: PoolLimits,
        clock: Callable[[], float],
        on_change: Callable[[CircuitState], None] = lambda state: None,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._on_change = on_change
        self._failures = 0  # in a row
        self._times_opened = 0  # since the last complete success
        self._open_until = 0.0
        self.state: CircuitState = "closed"

    def may_send(self) -> bool:
        """Whether a request may go out now: it is closed, or due for its probe."""
        return self.state == "closed" or (self.state == "open" and self._clock() >= self._open_until)

    @property
    def blocked(self) -> bool:
        """Whether nothing can go out before the back-off is over."""
        return self.state == "open" and self._clock() < self._open_until

    @property
    def seconds_until_probe(self) -> float:
        """0 unless blocked."""
        return max(0.0, self._open_until - self._clock()) if self.state == "open" else 0.0

    def sent(self) -> None:
        """A request goes out; with an open circuit it is the probe."""
        if self.state == "open":
            self._change("half_open")

    def answered(self) -> None:
        """An upstream's first byte came. That ends a probe, but a death in mid-stream reopens at once."""
        if self.state == "half_open":
            self._failures = self._limits.failures_to_open - 1
            self._change("closed")

    def succeeded(self) -> None:
        """A request was answered completely."""
        self._failures = self._times_opened = 0
        if self.state == "half_open":
            self._change("closed")

    def failed(self) -> None:
        """A request failed by the upstream's fault."""
        self._failures += 1
        if self.state == "half_open" or (
            self.state == "closed" and self._failures >= self._limits.failures_to_open
        ):
            backoff = self._limits.open_seconds * 2.0 ** min(self._times_opened, 32)
            # Jitter keeps the replicas of a gateway from probing at the same moment.
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
            self._open_until = self._clock() + min(backoff, self._limits.max_open_seconds) * jitter
            self._times_opened += 1
            self._change("open")

    def withdrawn(self) -> None:
        """A request ended by the caller's wish, which says nothing: a probe may be made again at once."""
        if self.state == "half_open":
            self._open_until = self._clock()
            self._change("open")

    def reset(self) -> None:
        """Forget everything, for an upstream that is known to have come back."""
        self._failures = self._times_opened = 0
        if self.state != "closed":
            self._change("closed")

    def _change(self, state: CircuitState) -> None:
        self.state = state
        self._on_change(state)
