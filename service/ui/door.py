"""The way from the pages to the API: a session in place of a key, and no request from anybody else's page.

`/ui/api/v1/…` is `/v1/…` and `/ui/api/admin/v1/…` is `/admin/v1/…`, for the caller whose session it is. So
the pages can do what the API can, nothing is written twice, and who may do what is decided in one place.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.audit import AuditLog, actor_of
from service.auth import Caller, Callers
from service.http import (
    JSON_TYPE,
    App,
    Call,
    Header,
    Receive,
    Scope,
    Send,
    header,
    parse_json,
    read_body,
    send_response,
)
from service.limits import Limiter
from service.openai.errors import Forbidden, MethodNotAllowed, NotFound, Unauthorized
from service.openai.validation import explain
from service.settings import Limits
from service.ui.files import SAFETY, Files
from service.ui.sessions import COOKIE, GUEST, SECONDS, Session, Sessions

API = "/ui/api"
SAFE_METHODS = frozenset({"GET", "HEAD"})
LOGIN_BYTES = 4_096
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
PAGES = {
    GUEST: ("playground", "policies"),
    "api": ("playground", "policies"),
    "rater": ("compare",),
    "admin": ("playground", "compare", "reviews", "experiments", "policies"),
}


class Login(BaseModel):
    """`POST /ui/api/login`."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=1, max_length=512)


class Door:
    """ASGI: answers under `/ui` and passes all else on."""

    def __init__(
        self,
        app: App,
        callers: Callers,
        sessions: Sessions,
        limiter: Limiter,
        limits: Limits,
        audit: AuditLog,
    ) -> None:
        self._app = app
        self._callers = callers
        self._sessions = sessions
        self._limiter = limiter
        self._limits = limits
        self._audit = audit
        self._files = Files()
        self._login = TypeAdapter(Login)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path != "/ui" and not path.startswith("/ui/"):
            await self._app(scope, receive, send)
        elif not path.startswith(API + "/"):
            await self._files.answer(scope, send)
        else:
            await self._api(path.removeprefix(API), scope, receive, send)

    async def _api(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["keel"]
        call.headers.append((b"cache-control", b"no-store"))
        if scope["method"] not in SAFE_METHODS:
            _check_origin(scope)
        if path == "/login":
            await self._log_in(scope, receive, send)
            return
        session = self._sessions.read(_cookie(scope))
        if path == "/session":
            _expect(scope, "GET")
            await self._tell(scope, send, session)
            return
        if session is None:
            raise Unauthorized("log in first", code="no_session")
        if scope["method"] not in SAFE_METHODS:
            _check_token(scope, session)
        if path == "/logout":
            _expect(scope, "POST")
            await _send(send, {"role": None}, _set_cookie(scope, "", 0))
            return
        if not path.startswith(("/v1/", "/admin/v1/")):
            raise NotFound(f"there is nothing at {scope['path'][:200]}")
        call.caller = session.caller
        scope["path"] = path
        scope["raw_path"] = scope["raw_path"].removeprefix(API.encode())
        await self._app(scope, receive, send)

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A session for whoever has a key. Tries are counted by address, whether they succeed or not."""
        _expect(scope, "POST")
        scope["keel"].route = f"{API}/login"
        await self._limiter.admit_login(scope["client"][0] if scope.get("client") else "", scope["keel"])
        body = await read_body(scope, receive, max_bytes=LOGIN_BYTES, timeout=self._limits.body_timeout_s)
        try:
            login = self._login.validate_python(parse_json(body))
        except ValidationError as error:
            raise explain(error) from None
        caller = self._callers.find(login.key.strip())
        self._record(scope, caller)
        if caller is None:
            raise Unauthorized("this key is not known here; was it revoked, or cut when it was copied?")
        session, value = self._sessions.begin(caller)
        await _send(send, _told(session), _set_cookie(scope, value, SECONDS))

    def _record(self, scope: Scope, caller: Caller | None) -> None:
        client = scope["client"][0] if scope.get("client") else None
        action = "ui.login" if caller else "ui.denied"
        self._audit.fold(action, actor=actor_of(caller), subject="/ui", details={"client": client})

    async def _tell(self, scope: Scope, send: Send, session: Session | None) -> None:
        """Who sits there, and what there is for them; on a gateway without keys, a guest."""
        scope["keel"].route = f"{API}/session"
        if session is not None:
            await _send(send, _told(session))
        elif self._callers.required:
            await _send(send, {"role": None, "pages": []})
        else:
            session, value = self._sessions.begin(None)
            await _send(send, _told(session), _set_cookie(scope, value, SECONDS))


def _told(session: Session) -> dict[str, Any]:
    return {
        "role": session.role,
        "name": session.caller.name if session.caller else None,
        "csrf": session.csrf,
        "pages": PAGES[session.role],
    }


async def _send(send: Send, answer: dict[str, Any], *more: Header) -> None:
    await send_response(send, 200, orjson.dumps(answer), (JSON_TYPE, *SAFETY, *more))


def _expect(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        raise MethodNotAllowed(scope["method"], scope["path"], (method,))


def _check_origin(scope: Scope) -> None:
    """Raises `Forbidden` for what another site's page sends."""
    origin = header(scope, b"origin")
    host = (header(scope, b"host") or b"").decode("latin-1")
    if origin is not None and urlsplit(origin.decode("latin-1")).netloc != host:
        raise Forbidden("this came from another site's page")
    if header(scope, b"sec-fetch-site") not in (None, b"same-origin", b"none"):
        raise Forbidden("this came from another site's page")


def _check_token(scope: Scope, session: Session) -> None:
    given = header(scope, b"x-csrf-token") or b""
    if not hmac.compare_digest(given, session.csrf.encode()):
        raise Forbidden("the page is out of date: load it again", code="csrf_token_invalid")


def _cookie(scope: Scope) -> str:
    try:
        cookies = SimpleCookie((header(scope, b"cookie") or b"").decode("latin-1"))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _set_cookie(scope: Scope, value: str, seconds: int) -> Header:
    """Only a page on this very machine may have it without encryption."""
    host = urlsplit("//" + (header(scope, b"host") or b"").decode("latin-1")).hostname
    secure = "" if host in LOOPBACK_HOSTS else "; Secure"
    text = f"{COOKIE}={value}; Path=/ui; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    return (b"set-cookie", text.encode())
