"""The yardstick for overhead: the shortest honest FastAPI + aiohttp proxy, nothing examined or counted."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from fastapi import FastAPI, Request, Response

UPSTREAM = os.environ.get("BENCH_UPSTREAM", "http://127.0.0.1:9100")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)) as session:
        app.state.session = session
        yield


app = FastAPI(lifespan=_lifespan)


@app.get("/health/live")
async def live() -> dict[str, str]:
    """Answers when the proxy listens."""
    return {"status": "ok"}


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    """Read the JSON, pass it on, give the reply back."""
    body = await request.json()
    async with request.app.state.session.post(f"{UPSTREAM}/v1/chat/completions", json=body) as reply:
        return Response(await reply.read(), status_code=reply.status, media_type="application/json")
