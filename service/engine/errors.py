"""What can go wrong between the gateway and an upstream, as one tree under `UpstreamError`.

    UpstreamError
    ├── ConnectError           nothing listens, DNS, TLS: no request was sent
    ├── UpstreamTimeout        .kind: connect | first_token | idle | total
    ├── UpstreamStatusError    the upstream answered with a status other than 2xx
    ├── ProtocolError          the upstream's bytes are not what HTTP or SSE allow, or exceed a bound
    ├── Interrupted            the connection died after the request was sent
    │   └── InStreamError      the upstream reported an error object in mid-stream
    ├── Aborted                this side closed the stream while somebody still read from it
    └── Refused                never sent
        ├── Overloaded         every slot is taken and the queue is full, or waiting took too long
        └── Unavailable        no upstream is up: circuits open, child not ready, engine stopping

No message holds a byte of a request's or a reply's text, so that any of them can be logged.
"""

from __future__ import annotations

from typing import Literal

Phase = Literal["queue", "connect", "headers", "body"]
TimeoutKind = Literal["connect", "first_token", "idle", "total"]

# RFC 9110 section 15.6: the upstream itself could not reach what it needs. 500 is left out: it may
# have done the work and failed on the reply, and would likely fail again.
RETRYABLE_STATUSES = frozenset({502, 503, 504})
TOO_MANY_REQUESTS = 429  # RFC 6585 section 4; another upstream may have room


class UpstreamError(Exception):
    """Base of all engine errors.

    `upstream` names the upstream, `phase` how far the request had got, and `bytes_received` says whether
    any byte of the reply's body had come.
    """

    def __init__(
        self, message: str, *, upstream: str = "", phase: Phase = "body", bytes_received: bool = False
    ) -> None:
        super().__init__(f"upstream {upstream!r}: {message}" if upstream else message)
        self.upstream = upstream
        self.phase = phase
        self.bytes_received = bytes_received

    @property
    def retryable(self) -> bool:
        """Whether the same request may be sent again, here or to another upstream."""
        return False

    @property
    def counts_against_upstream(self) -> bool:
        """Whether passive health takes this for the upstream's failure."""
        return True


class ConnectError(UpstreamError):
    """No connection could be made, so no request was sent."""

    @property
    def retryable(self) -> bool:
        return True


class UpstreamTimeout(UpstreamError):
    """A time limit ran out; `kind` says which, `seconds` its length."""

    def __init__(
        self,
        kind: TimeoutKind,
        seconds: float,
        *,
        upstream: str = "",
        phase: Phase = "body",
        bytes_received: bool = False,
    ) -> None:
        super().__init__(
            f"{kind} limit of {seconds:g} s exceeded",
            upstream=upstream,
            phase=phase,
            bytes_received=bytes_received,
        )
        self.kind = kind
        self.seconds = seconds

    @property
    def retryable(self) -> bool:
        return self.kind == "connect"


class UpstreamStatusError(UpstreamError):
    """The upstream answered, with `status` and `body` (cut at the error bound), and not with a 2xx.

    `retry_after` is the Retry-After header in seconds, None where it was absent or not a number.
    """

    def __init__(
        self, status: int, body: bytes, *, retry_after: float | None = None, upstream: str = ""
    ) -> None:
        super().__init__(f"answered with status {status}", upstream=upstream, phase="headers")
        self.status = status
        self.body = body
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool:
        return self.status in RETRYABLE_STATUSES

    @property
    def counts_against_upstream(self) -> bool:
        return self.status >= 500


class ProtocolError(UpstreamError):
    """The reply is malformed, of the wrong kind, or larger than allowed."""


class Interrupted(UpstreamError):
    """The connection ended before the reply did."""

    @property
    def retryable(self) -> bool:
        return not self.bytes_received and self.phase == "headers"


class InStreamError(Interrupted):
    """The upstream sent an error object in place of a further chunk; `body` holds its JSON."""

    def __init__(self, body: bytes, *, upstream: str = "", bytes_received: bool = False) -> None:
        super().__init__(
            "reported an error within the stream", upstream=upstream, bytes_received=bytes_received
        )
        self.body = body


class Aborted(UpstreamError):
    """The stream was closed by this side while a reader still waited."""

    @property
    def counts_against_upstream(self) -> bool:
        return False


class Refused(UpstreamError):
    """The engine did not send the request; `retry_after` is when another try is worth it, in seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, phase="queue")
        self.retry_after = retry_after

    @property
    def counts_against_upstream(self) -> bool:
        return False


class Overloaded(Refused):
    """Too many requests: in flight and waiting, or waiting for too long."""


class Unavailable(Refused):
    """No upstream can take requests at present."""
