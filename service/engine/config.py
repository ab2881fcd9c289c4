"""What an operator may set about the engine: where upstreams are, how long to wait, how much to take."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds. `first_token` and `idle` apply to streams; whole replies have `connect` and `total`.

    `first_token` runs from sending the request to the first event's data, `idle` from one event to the
    next while somebody waits for it: comments and half events don't count, so neither a dribbling nor a
    merely pinging upstream keeps a stream open.
    """

    connect: float = 5.0
    first_token: float = 120.0
    idle: float = 60.0
    total: float = 900.0

    def __post_init__(self) -> None:
        for name in ("connect", "first_token", "idle", "total"):
            if getattr(self, name) <= 0:
                raise ValueError(f"time limit {name!r} must be above zero, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Bytes. What an upstream sends beyond these is a `ProtocolError`."""

    body: int = 64 << 20  # a whole reply: a batch of embeddings is large
    event: int = 4 << 20  # one SSE event or line
    error_body: int = 64 << 10  # what is kept of an error's body

    def __post_init__(self) -> None:
        for name in ("body", "event", "error_body"):
            if getattr(self, name) < 1:
                raise ValueError(f"size limit {name!r} must be above zero, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How much goes to the upstreams at once, what waits, and how failures are dealt with.

    `max_in_flight` is per upstream, `max_waiting` is shared. An upstream's circuit opens after
    `failures_to_open` failures in a row, for `open_seconds` doubled each time up to `max_open_seconds`.
    """

    max_in_flight: int = 256
    max_waiting: int = 1024
    max_wait_seconds: float = 30.0
    max_attempts: int = 3
    retry_backoff_seconds: float = 0.05
    failures_to_open: int = 5
    open_seconds: float = 0.5
    max_open_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_in_flight", "max_attempts", "failures_to_open"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name!r} must be at least 1, got {getattr(self, name)}")
        if self.max_waiting < 0 or self.max_wait_seconds < 0 or self.retry_backoff_seconds < 0:
            raise ValueError(
                "'max_waiting', 'max_wait_seconds' and 'retry_backoff_seconds' can't be negative"
            )
        if not 0 < self.open_seconds <= self.max_open_seconds:
            raise ValueError("'open_seconds' must be above zero and at most 'max_open_seconds'")


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """One OpenAI-compatible server.

    `base_url` is given as OpenAI's SDK takes it or without the `/v1`; both mean the same. The API key is
    named by the environment variable that holds it, so that no configuration file does; `api_key` is for
    keys that were made in this process. Without `done_required`, a stream that ends cleanly but without
    OpenAI's `[DONE]` counts as complete.
    """

    name: str
    base_url: str
    api_key_env: str | None = None
    api_key: str | None = field(default=None, repr=False)
    done_required: bool = True

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(
                f"upstream {self.name!r}: base_url must be http://host[:port] or https://…, "
                f"got {self.base_url!r}"
            )
        if url.username or url.password or url.query or url.fragment:
            raise ValueError(
                f"upstream {self.name!r}: base_url can't hold credentials, a query or a fragment; "
                f"name the key's environment variable in api_key_env"
            )

    @property
    def root(self) -> str:
        """The base URL without a trailing slash or `/v1`."""
        return self.base_url.rstrip("/").removesuffix("/v1")
