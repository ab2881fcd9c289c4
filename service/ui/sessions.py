"""Who sits at a page: a signed cookie, and the token that every change must bring along.

The cookie holds no key and no name: a keyed reference to the caller, looked up in the keys that are valid
now, so that a revoked key ends its sessions; a nonce; and when it ends. Nothing is kept here, so that any
replica with the same `hash_key` knows it.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.auth import Caller, Callers

COOKIE = "keel_session"
SECONDS = 12 * 3600
GUEST = "guest"  # in place of a reference: nobody in particular, on a gateway without keys


@dataclass(frozen=True, slots=True)
class Session:
    """`caller` is None for a guest. `csrf` must come back in a header with every unsafe request."""

    caller: Caller | None
    csrf: str

    @property
    def role(self) -> str:
        return self.caller.role if self.caller else GUEST


class Sessions:
    """Makes sessions and reads them."""

    def __init__(self, secret: bytes, callers: Callers, now: Callable[[], float] = time.time) -> None:
        """`secret` is the gateway's own; what is derived from it serves sessions alone."""
        self._secret = hmac.digest(secret, b"keel ui sessions", "sha256")
        self._callers = callers
        self._now = now

    def begin(self, caller: Caller | None) -> tuple[Session, str]:
        """A fresh session and its cookie's value."""
        nonce = secrets.token_hex(16)
        who = GUEST if caller is None else self._reference(caller)
        content = f"{who}.{nonce}.{int(self._now()) + SECONDS}"
        return Session(caller, self._csrf(nonce)), f"{content}.{_encode(self._sign(content))}"

    def read(self, value: str) -> Session | None:
        """The session that a cookie stands for; None where it is forged, over, or its key was revoked."""
        content, _, tag = value.rpartition(".")
        if not hmac.compare_digest(_encode(self._sign(content)).encode(), tag.encode()):
            return None
        who, nonce, ends = content.split(".")
        if int(ends) <= self._now():
            return None
        if who == GUEST:
            return None if self._callers.required else Session(None, self._csrf(nonce))
        for caller in self._callers.everyone():
            if hmac.compare_digest(self._reference(caller), who):
                return Session(caller, self._csrf(nonce))
        return None

    def _reference(self, caller: Caller) -> str:
        return self._sign(f"caller {caller.sha256}").hex()[:32]

    def _csrf(self, nonce: str) -> str:
        return _encode(self._sign(f"csrf {nonce}"))

    def _sign(self, content: str) -> bytes:
        return hmac.digest(self._secret, content.encode("utf-8", "surrogatepass"), "sha256")


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
