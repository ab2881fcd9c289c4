"""A client connected to a scripted upstream, for the tests of the client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from service.engine.client import UpstreamClient
from service.engine.config import SizeLimits, TimeLimits, UpstreamConfig
from tests.fakes.upstream import Behaviour, FakeUpstream

PATH = "/v1/chat/completions"
TIMES = TimeLimits(connect=1, first_token=1, idle=1, total=5)


@contextlib.asynccontextmanager
async def connected(
    *behaviours: Behaviour, times: TimeLimits = TIMES, sizes: SizeLimits | None = None, **config: Any
) -> AsyncIterator[tuple[UpstreamClient, FakeUpstream]]:
    async with FakeUpstream() as server:
        server.script(*behaviours)
        client = UpstreamClient(UpstreamConfig("fake", server.base_url, **config), times, sizes)
        await client.open()
        try:
            yield client, server
        finally:
            await client.close()


def body(stream: bool = False, **extra: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [], "stream": stream, **extra}).encode()


async def texts(client: UpstreamClient, into: list[str] | None = None) -> list[str]:
    got: list[str] = [] if into is None else into
    async with await client.open_stream(PATH, body(stream=True)) as stream:
        async for payload in stream:
            got.append(json.loads(payload)["choices"][0]["delta"]["content"])
    return got
