"""Pools of upstream clients on real sockets, for the tests of the pool."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from service.engine.client import UpstreamClient
from service.engine.config import PoolLimits, TimeLimits, UpstreamConfig
from service.engine.errors import Refused, UpstreamError
from service.engine.observer import NullObserver
from service.engine.pool import UpstreamPool
from tests.fakes.upstream import FakeUpstream

PATH = "/v1/chat/completions"
BODY = json.dumps({"model": "m", "messages": []}).encode()
STREAM = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
TIMES = TimeLimits(connect=1, first_token=2, idle=2, total=5)
QUICK = PoolLimits(retry_backoff_seconds=0.01, open_seconds=0.2, max_open_seconds=0.4, failures_to_open=3)


class Recorder(NullObserver):
    def __init__(self) -> None:
        self.peak: dict[str, int] = {}
        self.now: dict[str, int] = {}
        self.queued: list[int] = []
        self.states: list[tuple[str, str]] = []
        self.retries: list[str] = []
        self.outcomes: list[str] = []
        self.refusals: list[str] = []

    def in_flight(self, upstream: str, count: int) -> None:
        self.now[upstream] = count
        self.peak[upstream] = max(count, self.peak.get(upstream, 0))

    def waiting(self, count: int) -> None:
        self.queued.append(count)

    def circuit(self, upstream: str, state: str) -> None:
        self.states.append((upstream, state))

    def retried(self, upstream: str, error: UpstreamError) -> None:
        self.retries.append(type(error).__name__)

    def finished(self, upstream: str, error: UpstreamError | None, seconds: float) -> None:
        self.outcomes.append("ok" if error is None else type(error).__name__)

    def refused(self, error: Refused) -> None:
        self.refusals.append(type(error).__name__)


@contextlib.asynccontextmanager
async def pooled(
    count: int = 1, limits: PoolLimits = QUICK
) -> AsyncIterator[tuple[UpstreamPool, Sequence[FakeUpstream], Recorder]]:
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeUpstream()) for _ in range(count)]
        clients = []
        for i, server in enumerate(servers):
            client = UpstreamClient(UpstreamConfig(f"u{i}", server.base_url), TIMES)
            await client.open()
            stack.push_async_callback(client.close)
            clients.append(client)
        recorder = Recorder()
        yield UpstreamPool(clients, limits, recorder), servers, recorder


async def read(pool: UpstreamPool) -> list[bytes]:
    async with await pool.open_stream(PATH, STREAM) as stream:
        return [payload async for payload in stream]


async def until(condition: Any) -> None:
    async with asyncio.timeout(3):
        while not condition():  # noqa: ASYNC110 - conditions of the pool have no event
            await asyncio.sleep(0.005)
