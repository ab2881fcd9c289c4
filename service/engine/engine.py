"""The engine as the rest of the gateway sees it: start, ask, stream, stop.

    engine = Engine([UpstreamConfig("gpu-0", "http://10.0.0.7:8000", api_key_env="GPU0_KEY")])
    await engine.start()
    reply = await engine.complete("/v1/embeddings", body)
    async with engine.stream("/v1/chat/completions", body) as events:
        async for payload in events: ...
    await engine.aclose(drain=30)

With a vLLM of its own: `Engine.managed(ManagedVllm(VllmConfig(folder, "demo-chat")))`, and after `start`
`await engine.wait_ready()`.

Aborting: cancel the task that awaits `complete`, or leave the `stream` block (or call `close` on what it
gave). Either closes the upstream's connection at once, and an OpenAI-compatible server then stops
generating. Nothing is sent again after an abort.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from service.engine.adapters import Adapters
from service.engine.client import Headers, Reply, UpstreamClient
from service.engine.config import PoolLimits, SizeLimits, TimeLimits, UpstreamConfig
from service.engine.errors import UpstreamError
from service.engine.event_stream import EventStream
from service.engine.observer import EngineObserver, NullObserver
from service.engine.pool import UpstreamPool
from service.engine.users import Users
from service.engine.vllm_process import ManagedVllm
from service.telemetry.tracing import engine_span


class StreamRequest:
    """A stream to be opened by `async with`, and closed by leaving it."""

    def __init__(
        self, pool: UpstreamPool, path: str, body: bytes, headers: Headers | None, raw: bool
    ) -> None:
        self._pool = pool
        self._arguments = (path, body, headers, raw)
        self._stream: EventStream | None = None

    async def __aenter__(self) -> EventStream:
        path, body, headers, raw = self._arguments
        self._stream = await self._pool.open_stream(path, body, headers, raw=raw)
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()


class Engine:
    """Upstreams that serve one model. Its methods raise `service.engine.errors.UpstreamError`."""

    def __init__(
        self,
        upstreams: Sequence[UpstreamConfig],
        *,
        times: TimeLimits | None = None,
        sizes: SizeLimits | None = None,
        limits: PoolLimits | None = None,
        observer: EngineObserver | None = None,
        child: ManagedVllm | None = None,
    ) -> None:
        """Raises `ValueError` for settings that can't work. See `managed` for an engine with a child."""
        self._limits = limits or PoolLimits()
        self._observer: EngineObserver = observer or NullObserver()
        self._clients = [UpstreamClient(config, times, sizes) for config in upstreams]
        self._pool: UpstreamPool | None = None
        self.child = child
        self.users = Users()
        self.adapters = Adapters(self)

    @classmethod
    def managed(
        cls,
        child: ManagedVllm,
        *,
        times: TimeLimits | None = None,
        sizes: SizeLimits | None = None,
        limits: PoolLimits | None = None,
        observer: EngineObserver | None = None,
    ) -> Self:
        """An engine whose one upstream is a vLLM server that it starts, watches and stops itself."""
        upstream = UpstreamConfig(child.name, child.base_url, api_key=child.api_key)
        return cls([upstream], times=times, sizes=sizes, limits=limits, observer=observer, child=child)

    @property
    def pool(self) -> UpstreamPool:
        if self._pool is None:
            raise RuntimeError("the engine is not started")
        return self._pool

    @property
    def ready(self) -> bool:
        """Whether a request that comes now has a chance of being answered."""
        if self.child is not None and not self.child.ready:
            return False
        return self._pool is not None and self._pool.ready

    async def start(self) -> None:
        """Open the connection pools and begin to start the child, if there is one; see `wait_ready`."""
        for client in self._clients:
            await client.open()
        self._pool = UpstreamPool(self._clients, self._limits, self._observer, self._on_broken)
        if self.child is not None:
            self._follow_child()
            self.child.subscribe(self._follow_child)
            await self.child.start()

    def check(self, coming: int = 0) -> None:
        """Raises `Refused` where a request that comes now would wait too long; see `UpstreamPool.check`."""
        self.pool.check(coming)

    async def wait_ready(self, seconds: float | None = None) -> None:
        """Wait for the child to serve. Raises `VllmFailed`, or `TimeoutError` after `seconds`."""
        if self.child is not None:
            await self.child.wait_ready(seconds)

    async def complete(
        self, path: str, body: bytes | None, headers: Headers | None = None, *, method: str = "POST"
    ) -> Reply:
        """Send a JSON body to a `/v1/...` path and return the whole 2xx reply.

        `headers` are forwarded but for hop-by-hop ones and credentials.
        """
        span = engine_span(path, body)
        if span is None:
            return await self.pool.complete(path, body, headers, method=method)
        try:
            reply = await self.pool.complete(path, body, span.headers(headers), method=method)
        except BaseException as error:
            span.failed(error)
            raise
        span.answered()
        return reply

    async def ask_each(self, path: str, body: bytes) -> dict[str, UpstreamError | None]:
        """Send a JSON body to every upstream, past the pool; by name the error of each, None for a 2xx."""

        async def ask(client: UpstreamClient) -> UpstreamError | None:
            try:
                await client.complete(path, body)
            except UpstreamError as error:
                return error
            return None

        errors = await asyncio.gather(*(ask(client) for client in self._clients))
        return {client.name: error for client, error in zip(self._clients, errors, strict=True)}

    async def open_stream(
        self, path: str, body: bytes, headers: Headers | None = None, *, raw: bool = False
    ) -> EventStream:
        """Send a JSON body that asks for a stream; returns when its first event is there.

        Iterate the result for payloads, or its `raw()` for bytes where `raw` was asked for. The caller
        closes it.
        """
        span = engine_span(path, body)
        if span is None:
            return await self.pool.open_stream(path, body, headers, raw=raw)
        try:
            stream = await self.pool.open_stream(path, body, span.headers(headers), raw=raw)
        except BaseException as error:
            span.failed(error)
            raise
        span.opened(stream)
        return stream

    def stream(
        self, path: str, body: bytes, headers: Headers | None = None, *, raw: bool = False
    ) -> StreamRequest:
        """`open_stream` as an async context manager, which closes."""
        return StreamRequest(self.pool, path, body, headers, raw)

    async def aclose(self, drain: float = 0.0) -> bool:
        """Refuse new requests, give those in flight `drain` seconds, then cut what is left.

        Returns whether all had ended by themselves.
        """
        drained = True
        try:
            if self._pool is not None:
                drained = await self._pool.drain(drain)
        finally:
            await asyncio.gather(*(client.close() for client in self._clients))
            if self.child is not None:
                await self.child.stop()
        return drained

    def _on_broken(self, upstream: str) -> None:
        if self.child is not None:
            self.child.suspect()

    def _follow_child(self) -> None:
        child = self.child
        if child is None or self._pool is None:
            return
        serving = child.state == "ready"
        if serving:
            self._clients[0].move(child.base_url)  # every start takes a new port
        self._pool.set_up(child.name, serving)
