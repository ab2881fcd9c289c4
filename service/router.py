"""Which endpoint answers: an exact look-up for the API's own paths, FastAPI for the rest."""

from __future__ import annotations

from collections.abc import Mapping

from service.http import App, Receive, Scope, Send
from service.openai.errors import MethodNotAllowed


class Router:
    """`endpoints` maps a path to its methods' endpoints; what isn't there goes to `others`."""

    def __init__(self, endpoints: Mapping[str, Mapping[str, App]], others: App) -> None:
        self._endpoints = endpoints
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        methods = self._endpoints.get(path)
        if methods is None:
            await self._others(scope, receive, send)
            return
        scope["keel"].route = path
        endpoint = methods.get(scope["method"])
        if endpoint is None:
            raise MethodNotAllowed(scope["method"], path, tuple(sorted(methods)))
        await endpoint(scope, receive, send)
