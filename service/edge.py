"""The middlewares around everything, pure ASGI, outermost first: Observe, Gate, Authenticate.

`Observe` gives each call its id, its record in metrics and log, and turns whatever goes wrong inside into
an error that OpenAI's SDKs understand. `Gate` turns away what must not reach the endpoints at all.
`Authenticate` says who calls, and counts it against the caller's limits.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from structlog.typing import FilteringBoundLogger

from service.auth import Caller, Callers
from service.generation import PATHS
from service.http import App, Call, ClientGone, MessageDict, Receive, Scope, Send, header, send_error
from service.limits import Limiter
from service.openai import sse
from service.openai.errors import ApiError, Forbidden, PayloadTooLarge, Unauthorized, Unavailable
from service.telemetry.metrics import Metrics, child

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
CLIENT_CLOSED_REQUEST = 499  # nginx's number for it; never sent, only counted
LOADING = frozenset(PATHS.values())
OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
PROBES = OPEN_PATHS | {"/metrics"}
NAMED_PATHS = ("/admin/", "/v1/comparisons")
RATER_PATHS = ("/v1/comparisons", "/v1/feedback", *OPEN_PATHS)
_ids = random.Random()  # noqa: S311 - these are names, not secrets
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def new_id() -> str:
    """A request's id: unique, not secret, and made without a system call."""
    return f"req-{_ids.getrandbits(96):024x}"


class Observe:
    """Outermost: nothing gets out of it but well-formed answers."""

    def __init__(self, app: App, metrics: Metrics, log: FilteringBoundLogger, access: str = "all") -> None:
        self._app = app
        self._metrics = metrics
        self._log = log
        self._access = access
        self._in_flight = 0
        metrics.in_flight.set_function(lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        received = dict(scope["headers"])
        given = received.get(b"x-request-id")
        valid = given is not None and REQUEST_ID.fullmatch(given)
        call = scope["keel"] = Call(given.decode() if valid and given else new_id(), received)

        async def observed_send(message: MessageDict) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                message["headers"] = [*message["headers"], *call.headers]
            await send(message)

        self._in_flight += 1
        try:
            await self._app(scope, receive, observed_send)
        except ApiError as error:
            await self._answer(call, error, observed_send)
            _let_go(error)
        except ClientGone:
            call.client_gone = True
        except asyncio.CancelledError:
            if not call.client_gone:  # the server is going down
                await self._answer(call, Unavailable("the gateway is shutting down"), observed_send)
        except Exception as error:
            self._log.error("unhandled error", request_id=call.id, route=call.route, exc_info=error)
            message = f"an internal error occurred; the gateway's log has it under {call.id}"
            await self._answer(call, ApiError(message), observed_send)
        finally:
            self._in_flight -= 1
            self._record(scope, call)

    async def _answer(self, call: Call, error: ApiError, send: Send) -> None:
        call.error = error.code or error.type
        if call.status == 0:
            await send_error(send, error)
        elif call.stream:
            # The status line is out: in a stream, an error is an event like any other, and then it ends.
            await send({"type": "http.response.body", "body": sse.raw_event(error.body()) + sse.DONE})
        else:
            self._log.warning("response cut", request_id=call.id, route=call.route, error=call.error)

    def _record(self, scope: Scope, call: Call) -> None:
        status = CLIENT_CLOSED_REQUEST if call.client_gone else call.status
        if call.route == "other":  # FastAPI answered, and left its route in the scope
            call.route = getattr(scope.get("route"), "path", "other")
        child(self._metrics.http_requests, call.route, _method(scope), str(status)).inc()
        if self._access == "none" or (self._access == "errors" and status < 400):
            return
        # Probes and scrapes come every few seconds and tell nothing that the metrics don't.
        log = self._log.debug if call.route in PROBES else self._log.info
        log(
            "request",
            request_id=call.id,
            method=scope["method"],
            route=call.route,
            status=status,
            ms=round((time.perf_counter() - call.started) * 1e3, 2),
            keel_ms=round(call.overhead() * 1e3, 2),
            client=scope["client"][0] if scope.get("client") else None,
            caller=call.caller.name if call.caller else None,
            **({"policy": call.policy, "state": call.state, "stream": call.stream} if call.policy else {}),
            **({"error": call.error} if call.error else {}),
        )


def _let_go(error: BaseException) -> None:
    """Drop the frames that an error and those it came from were raised through.

    A frame of the traceback that still names the error is a cycle, which keeps the request and its body until
    the garbage collector comes. Under an overload those were thousands, and all stood still for 100 ms.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH") else "other"


class Gate:
    """Not ready, going away, full, too large, or from where no call should come."""

    def __init__(
        self,
        app: App,
        metrics: Metrics,
        *,
        unready: Callable[[], str | None],
        check_load: Callable[[], None],
        max_in_flight: int,
        max_body_bytes: int,
        keyless: Callable[[], bool],
        host_names: Iterable[str],
    ) -> None:
        """`unready` says why generation can't be served now, None when it can; `check_load` raises where
        requests to `LOADING` paths would wait too long, whatever they ask for.

        `host_names` are the names by which this gateway may be called while no keys protect it.
        """
        self._app = app
        self._metrics = metrics
        self._unready = unready
        self._check_load = check_load
        self._max_in_flight = max_in_flight
        self._max_body_bytes = max_body_bytes
        self._keyless = keyless
        self._host_names = frozenset(host_names) | LOOPBACK_NAMES
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if self._keyless():
            _check_origin(scope, self._host_names)
        if not path.startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        if path in LOADING:
            scope["keel"].route = path  # who is refused here counts where they wanted to go
        self._check_length(scope)
        reason = self._unready()
        if reason is not None:
            self._metrics.rejected.labels("unready").inc()
            raise Unavailable(f"the gateway is not ready: {reason}", code="not_ready", retry_after=2.0)
        if self._in_flight >= self._max_in_flight:
            self._metrics.rejected.labels("overloaded").inc()
            raise Unavailable("the gateway has as many requests as it can take", code="overloaded")
        if path in LOADING:
            self._check_load()
        self._in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight -= 1

    def _check_length(self, scope: Scope) -> None:
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > self._max_body_bytes:
            raise PayloadTooLarge(f"the body has {int(announced)} bytes; the limit is {self._max_body_bytes}")


def _check_origin(scope: Scope, host_names: frozenset[str]) -> None:
    """Without keys, any page in a browser on this machine could call us (DNS rebinding, CSRF).

    A rebound name shows in `Host`, a foreign page in `Origin`.
    """
    host = _host_name(b"//" + (header(scope, b"host") or b""))
    origin = header(scope, b"origin")
    if host and host not in host_names:
        raise Forbidden(
            f"this gateway has no API keys and does not answer to the host name {host[:100]!r}; "
            "add it to 'trusted_hosts', or create a key with `keel keys create`"
        )
    if origin is not None and _host_name(origin) not in host_names:
        raise Forbidden("this gateway has no API keys and takes no calls from other sites' pages")


@lru_cache(maxsize=256)
def _host_name(url: bytes) -> str:
    try:
        return urlsplit(url.decode("latin-1")).hostname or ""
    except ValueError:
        return "?"


class Authenticate:
    """API keys on `/v1`, the admin's on `/admin`; health is open, metrics take either.

    A page under `/ui` that is logged in comes with its caller (`service.ui.door`) and needs no key here.
    """

    def __init__(self, app: App, callers: Callers, limiter: Limiter) -> None:
        self._app = app
        self._callers = callers
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        call: Call = scope["keel"]
        named = path.startswith(NAMED_PATHS)  # somebody in particular must call, keys in general or not
        if call.caller is None and (named or (self._callers.required and path not in OPEN_PATHS)):
            call.caller = self._identify(scope)
        if call.caller is not None:
            _check_role(call.caller, path)
            if call.caller.limited and path.startswith("/v1/"):
                await self._limiter.admit(call.caller, call)
        await self._app(scope, receive, send)

    def _identify(self, scope: Scope) -> Caller:
        key = _presented_key(scope)
        if key is None:
            raise Unauthorized(
                "no API key was given; send it as 'Authorization: Bearer KEY'", code="missing_api_key"
            )
        caller = self._callers.find(key)
        if caller is None:
            raise Unauthorized("the API key is not known to this gateway")
        return caller


def _check_role(caller: Caller, path: str) -> None:
    """Raises `Forbidden` for what this caller's key is not for."""
    if caller.admin:
        return
    if path.startswith("/admin/"):
        raise Forbidden("this needs an admin key; `keel keys create NAME --role admin` makes one")
    if caller.role == "rater" and not path.startswith(RATER_PATHS):
        raise Forbidden("a rater's key is for comparing replies and for feedback only")
    if caller.role != "rater" and path.startswith("/v1/comparisons"):
        raise Forbidden("this needs a rater's key; `keel keys create NAME --role rater` makes one")


def _presented_key(scope: Scope) -> str | None:
    authorization = header(scope, b"authorization")
    if authorization is None:
        return None
    scheme, _, key = authorization.decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None
