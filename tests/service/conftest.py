"""A gateway on a real socket in front of a scripted upstream."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from policies.registry import Registry
from service.app import Gateway
from service.serve import listen, make_server
from service.settings import Settings
from service.telemetry import logs
from tests.fakes.upstream import FakeUpstream
from tests.fakes.vllm_hotload import install
from tests.hotload import publish_adapter, publish_tiny


@dataclass
class Running:
    """A gateway that serves, and ways to ask it."""

    gateway: Gateway
    upstream: FakeUpstream
    port: int
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def post(
        self, path: str, body: Any, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, aiohttp.ClientResponse]:
        """Status, parsed body and response; `body` is JSON, or bytes as they are."""
        kind = {"data": body} if isinstance(body, bytes) else {"json": body}
        headers = {"content-type": "application/json", **(headers or {})}
        async with self.session.post(self.url + path, headers=headers, **kind) as response:
            return response.status, await response.json(content_type=None), response

    async def get(
        self, path: str, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, aiohttp.ClientResponse]:
        async with self.session.get(self.url + path, headers=headers) as response:
            return response.status, await response.read(), response

    async def chat(self, text: str = "Hello", model: str = "plain", **fields: Any) -> tuple[int, Any]:
        """A chat request with one user message."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        status, answer, _ = await self.post("/v1/chat/completions", body)
        return status, answer

    async def stream(self, text: str = "Hello", model: str = "plain", **fields: Any) -> list[bytes]:
        """The data of a chat stream's events, `[DONE]` included."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, **fields}
        async with self.session.post(self.url + "/v1/chat/completions", json=body) as response:
            raw = await response.read()
            assert response.status == 200, raw
        return events(raw)


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait until `condition` holds, or fail."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells when it changes
            await asyncio.sleep(0.005)


def events(raw: bytes) -> list[bytes]:
    """The data of the events in an event stream, whose framing must be exact."""
    assert raw.endswith(b"\n\n")
    blocks = raw[:-2].split(b"\n\n")
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks), raw
    return [block[6:] for block in blocks]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def finish_of(chunks: list[dict[str, Any]], index: int = 0) -> list[str]:
    return [
        choice["finish_reason"]
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index and choice["finish_reason"]
    ]


async def chunks_of(keel: Running, **fields: Any) -> list[dict[str, Any]]:
    data = await keel.stream(**fields)
    assert data[-1] == b"[DONE]"
    return [json.loads(item) for item in data[:-1]]


@pytest.fixture
def log_text() -> Iterator[io.StringIO]:
    """What the gateway and its libraries have logged; written by a thread, so look at it at the end."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    text = io.StringIO()
    _, writer = logs.configure("json", "debug", text)
    yield text
    writer.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


Serve = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_text: io.StringIO) -> Serve:
    """`async with serve({"name": yaml}, **settings) as running:`; a policy's model is the upstream.

    Where its text begins with `model:`, it is that one.
    """
    for variable in ("KEEL_API_KEYS", "KEEL_ADMIN_KEY"):
        monkeypatch.delenv(variable, raising=False)

    @contextlib.asynccontextmanager
    async def running(
        policies: dict[str, str] | None = None, *, start: bool = True, **settings: Any
    ) -> AsyncIterator[Running]:
        folder = tmp_path / "policies"
        folder.mkdir(exist_ok=True)
        async with FakeUpstream() as upstream:
            model = f'model: {{upstream: {{base_url: "{upstream.base_url}/v1", model: fake}}}}\n'
            for name, text in {"plain": "", **(policies or {})}.items():
                head = "" if text.startswith("model:") else model
                (folder / f"{name}.yaml").write_text(f"name: {name}\n{head}{text}")
            loaded = Settings.load(
                None,
                **{
                    "port": 0,
                    "policies": [folder],
                    "shipped_policies": False,
                    "default_policy": "plain",
                    "state_dir": tmp_path / "state",
                    "watch_policies": False,
                    "drain_timeout_s": 2.0,
                    **settings,
                },
            )
            gateway = Gateway(loaded, structlog.get_logger())
            listener = listen(loaded)
            server = make_server(gateway)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                if start:
                    await gateway.start()
                await until(lambda: server.started)
                async with aiohttp.ClientSession() as session:
                    yield Running(gateway, upstream, listener.getsockname()[1], session)
            finally:
                server.should_exit = True
                await serving
                await gateway.stop()

    return running


# Checkpoints that are swapped, in front of a stand-in for vLLM

HOT_MODEL = "model: {checkpoint: chat}\n"
CANARY = """
prompts: ["Hello!", "And now?"]
max_tokens: 40
limits: {logprob_drop: 2.0}
"""
Hot = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two models, and three adapters of the first; the alias `chat` means the first model."""
    root = tmp_path / "checkpoints"
    root.mkdir()
    base = publish_tiny(root, "base", 1)
    publish_tiny(root, "other", 2)
    for seed, name in enumerate(("ad-one", "ad-two", "ad-three")):
        publish_adapter(root, name, base, seed)
    Registry(root).point("chat", "base")
    return root


@pytest.fixture
def hot(serve: Serve, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hot:
    """A gateway whose policy `hot` follows the alias `chat`; nothing is watched unless a test says so."""
    for name, value in install(tmp_path / "fake").items():
        monkeypatch.setenv(name, value)
    canary = tmp_path / "canary.yaml"
    canary.write_text(CANARY)

    @contextlib.asynccontextmanager
    async def running(policies: dict[str, str] | None = None, **settings: Any) -> AsyncIterator[Running]:
        hotload = {"watch": False, "canary": canary, **settings.pop("hotload", {})}
        chosen = {"checkpoints": root, "hotload": hotload, **settings}
        async with serve(policies or {"hot": HOT_MODEL}, **chosen) as keel:
            yield keel

    return running
