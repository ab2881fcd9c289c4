"""What the engine tells whoever measures it. Calls are made on the event loop and must return at once."""

from __future__ import annotations

from typing import Literal, Protocol

from service.engine.errors import Refused, UpstreamError

CircuitState = Literal["closed", "open", "half_open"]
ChildState = Literal["stopped", "starting", "ready", "restarting", "stopping", "failed"]


class EngineObserver(Protocol):
    """Every method has a counterpart among gauges, counters and histograms; names are upstreams' names."""

    def in_flight(self, upstream: str, count: int) -> None:
        """So many requests are now with this upstream."""
        ...

    def waiting(self, count: int) -> None:
        """So many requests now wait for a slot."""
        ...

    def first_byte(self, upstream: str, seconds: float) -> None:
        """A stream's first event came so long after its request was sent."""
        ...

    def finished(self, upstream: str, error: UpstreamError | None, seconds: float) -> None:
        """One attempt ended, well or with this error; aborts by the caller are not reported."""
        ...

    def retried(self, upstream: str, error: UpstreamError) -> None:
        """This error of this upstream is answered by another attempt."""
        ...

    def refused(self, error: Refused) -> None:
        """A request was not sent at all."""
        ...

    def circuit(self, upstream: str, state: CircuitState) -> None:
        """The upstream's circuit changed to this state."""
        ...

    def child(self, name: str, state: ChildState, restarts: int) -> None:
        """A managed child changed to this state, after so many restarts since the gateway began."""
        ...


class NullObserver:
    """Nobody looks."""

    def in_flight(self, upstream: str, count: int) -> None: ...
    def waiting(self, count: int) -> None: ...
    def first_byte(self, upstream: str, seconds: float) -> None: ...
    def finished(self, upstream: str, error: UpstreamError | None, seconds: float) -> None: ...
    def retried(self, upstream: str, error: UpstreamError) -> None: ...
    def refused(self, error: Refused) -> None: ...
    def circuit(self, upstream: str, state: CircuitState) -> None: ...
    def child(self, name: str, state: ChildState, restarts: int) -> None: ...
