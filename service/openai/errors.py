"""Everything that can go wrong with a call, and how it is said.

One tree of exceptions, one rendering: `{"error": {"message", "type", "param", "code"}}` under the status
code that OpenAI's API uses for it, which is what its SDKs map to their own exceptions. The gateway never
answers anything else: no bare 500 page, no framework's `detail`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from service.engine import errors as engine

Headers = tuple[tuple[bytes, bytes], ...]


class ApiError(Exception):
    """An answer that is an error. Subclasses fix the status, the type and a default code."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = "internal_error"

    def __init_subclass__(
        cls, *, status: int | None = None, type: str | None = None, code: str | None = None
    ) -> None:
        """What a subclass does not say is as in its base."""
        cls.status = status or cls.status
        cls.type = type or cls.type
        cls.code = code or cls.code

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        self.retry_after = retry_after
        self.extra = extra

    def body(self) -> bytes:
        """The JSON object that the client gets."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error, **(self.extra or {})})

    @property
    def headers(self) -> Headers:
        """Headers that belong to this error: `Retry-After`, whole seconds, where waiting can help."""
        if self.retry_after is None:
            return ()
        return ((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after))),)


class BadRequest(ApiError, status=400, type="invalid_request_error", code="invalid_value"):
    """The request can't be understood, or asks for what this policy doesn't give."""


class ContentFiltered(BadRequest, code="content_filter"):
    """An input guard blocked the request."""


class Unauthorized(ApiError, status=401, type="authentication_error", code="invalid_api_key"):
    """No API key, or one that isn't known."""

    @property
    def headers(self) -> Headers:
        return (b"www-authenticate", b"Bearer"), *super().headers


class Forbidden(ApiError, status=403, type="permission_error", code="permission_denied"):
    """A known caller who may not do this."""


class NotFound(ApiError, status=404, type="invalid_request_error", code="not_found"):
    """No such path."""


class ModelNotFound(NotFound, code="model_not_found"):
    """No policy has this name."""

    def __init__(self, model: str, known: list[str]) -> None:
        shown = model if len(model) <= 100 else model[:100] + "…"
        names = ", ".join(known[:20]) or "none are loaded"
        super().__init__(f"the model {shown!r} does not exist; this gateway serves: {names}", param="model")


class MethodNotAllowed(ApiError, status=405, type="invalid_request_error", code="method_not_allowed"):
    """The path exists, the method doesn't."""

    def __init__(self, method: str, path: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{path} takes {' and '.join(allowed)}, not {method}")
        self.allowed = allowed

    @property
    def headers(self) -> Headers:
        return ((b"allow", ", ".join(self.allowed).encode()),)


class RequestTimeout(ApiError, status=408, type="invalid_request_error", code="request_timeout"):
    """The client didn't finish sending its request in time."""


class Conflict(ApiError, status=409, type="invalid_request_error", code="conflict"):
    """What was asked for can't be done as things stand."""


class PayloadTooLarge(ApiError, status=413, type="invalid_request_error", code="payload_too_large"):
    """A body beyond the limit."""


class RateLimited(ApiError, status=429, type="rate_limit_error", code="rate_limit_exceeded"):
    """This key has used up its requests or tokens for now."""


class UpstreamRejected(ApiError):
    """The engine refused the request with a 4xx that the client can do something about."""

    type = "invalid_request_error"
    code = None

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status  # type: ignore[misc]  # the one error whose status is not its class's


class UpstreamFailed(ApiError, status=502, type="server_error", code="upstream_error"):
    """The engine broke, or said something that can't be understood."""


class Unavailable(ApiError, status=503, type="server_error", code="unavailable"):
    """Not ready, overloaded or going away; worth another try after `retry_after` seconds."""

    def __init__(self, message: str, *, code: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class UpstreamTimeout(ApiError, status=504, type="server_error", code="upstream_timeout"):
    """The engine took too long."""


_CODES_FOR_CLIENTS = {400, 409, 413, 422, 429}


def from_upstream(status: int, body: bytes, retry_after: float | None = None) -> ApiError:
    """What an upstream's error response means to our client.

    A 4xx about the request itself is passed on with its message. Refused credentials or an unknown model
    are this gateway's misconfiguration, not the client's, and become a 502; so does every 5xx but 503.
    """
    error = _error_object(body)
    message = str(error.get("message") or f"the upstream answered {status}")
    wait = retry_after or 1.0
    if status == 429:
        return RateLimited(f"the upstream is rate-limiting: {message}", retry_after=wait)
    if status == 503:
        return Unavailable(
            f"the upstream is unavailable: {message}", code="upstream_unavailable", retry_after=wait
        )
    if status in _CODES_FOR_CLIENTS:
        param, code = error.get("param"), error.get("code")
        return UpstreamRejected(
            status,
            message,
            param=param if isinstance(param, str) else None,
            code=code if isinstance(code, str) else None,
        )
    if status < 500:
        return UpstreamFailed(
            f"the upstream refused this gateway ({status}): check its address, model and key"
        )
    return UpstreamFailed(f"the upstream failed with status {status}")


def _error_object(body: bytes) -> dict[str, Any]:
    """The error object in an upstream's body; empty where it has none."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    error = parsed.get("error", parsed)
    return error if isinstance(error, dict) else {"message": error if isinstance(error, str) else ""}


def from_engine(error: engine.UpstreamError) -> ApiError:
    """What a failure between the gateway and an upstream means to our client."""
    if isinstance(error, engine.UpstreamStatusError):
        return from_upstream(error.status, error.body, error.retry_after)
    if isinstance(error, engine.InStreamError):
        found = _error_object(error.body)
        return UpstreamFailed(str(found.get("message") or "the upstream failed while it answered"))
    if isinstance(error, engine.Overloaded):
        return Unavailable(
            "the engine is busy and its queue is full",
            code="engine_overloaded",
            retry_after=error.retry_after,
        )
    if isinstance(error, engine.Refused):
        return Unavailable(
            "no engine can answer now", code="engine_unavailable", retry_after=error.retry_after
        )
    unreachable = isinstance(error, engine.UpstreamTimeout) and error.kind == "connect"
    if unreachable or isinstance(error, engine.ConnectError):
        return Unavailable("the engine can't be reached", code="engine_unavailable", retry_after=2.0)
    if isinstance(error, engine.UpstreamTimeout):
        return UpstreamTimeout(
            f"the engine did not answer in time ({error.kind} limit of {error.seconds:g} s)"
        )
    if isinstance(error, engine.Interrupted):
        return UpstreamFailed("the engine's connection was lost before the reply was complete")
    return UpstreamFailed("the engine's reply could not be understood")
