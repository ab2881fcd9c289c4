"""The door of a managed vLLM: nobody gets in without the key that was made for it, whatever the path.

vLLM asks for its key on `/v1` and a few more. The rest is open to whoever reaches the port, which on loopback
is every user of the machine and every page in its browsers: `/metrics`, `/invocations`, and in development
mode, which reading weights in place needs, `/collective_rpc`, `/pause` and `/sleep`.

Loaded by vLLM, in vLLM's process (`--middleware`). It imports nothing of Keel's.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class Door:
    """ASGI middleware around all of vLLM's server."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._wanted = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if scope["type"] == "http" and secrets.compare_digest(shown, self._wanted):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a socket that is not accepted is closed
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"error":"Unauthorized"}'})
