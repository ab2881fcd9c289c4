"""The gateway while the vLLM that it runs itself is killed: what callers see, and that it comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from tests.service.conftest import Running, Serve, events

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

MODEL = "model: {checkpoint: demo-chat}\n"
GUARDED = MODEL + "output:\n  - {guard: patterns, patterns: ['zzzzzzzz'], action: block}\n"
STREAMS = ["open", "guarded"] * 3
LONG = {"max_tokens": 400, "ignore_eos": True}


async def stream_to_the_end(keel: Running, model: str, flowing: asyncio.Semaphore) -> bytes:
    """All bytes of a long stream; tells when the first text has come."""
    messages = [{"role": "user", "content": "Tell me a story."}]
    body = {"model": model, "messages": messages, "stream": True, **LONG}
    raw = b""
    async with keel.session.post(keel.url + "/v1/chat/completions", json=body) as response:
        assert response.status == 200
        async for piece in response.content.iter_any():
            if not raw:
                flowing.release()
            raw += piece
    return raw


async def until_readiness(keel: Running, wanted: int, seconds: float) -> dict[str, Any]:
    """The readiness answer, once it has this status."""
    async with asyncio.timeout(seconds):
        while True:
            status, answer, _ = await keel.get("/health/ready")
            if status == wanted:
                content: dict[str, Any] = json.loads(answer)
                return content
            assert status in (200, 503)
            await asyncio.sleep(0.02)


async def test_a_killed_vllm_is_an_error_to_its_callers_and_comes_back(serve: Serve) -> None:
    async with serve({"open": MODEL, "guarded": GUARDED}) as keel:
        engine = keel.gateway.catalog.get("open").target.engine
        assert engine is keel.gateway.catalog.get("guarded").target.engine
        assert engine.child is not None
        await until_readiness(keel, 200, 60)

        # 1. It dies while all of them are being answered.
        flowing = asyncio.Semaphore(0)
        streams = [asyncio.create_task(stream_to_the_end(keel, model, flowing)) for model in STREAMS]
        whole = asyncio.create_task(keel.chat("Tell me a story.", "open", **LONG))
        async with asyncio.timeout(120):
            for _ in STREAMS:
                await flowing.acquire()
        killed = engine.child.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)

        # 2. Every caller gets a whole answer all the same: what had come, an error, the end.
        async with asyncio.timeout(60):
            endings = await asyncio.gather(*streams)
            status, answer = await whole
        for raw in endings:
            *texts, last, done = events(raw)
            assert texts
            assert all("choices" in json.loads(text) for text in texts)
            assert json.loads(last)["error"]["code"] == "upstream_error"
            assert done == b"[DONE]"
        assert status in (502, 503)
        assert answer["error"]["type"] == "server_error"

        # 3. It says that it isn't ready, and to whoever asks all the same, when to come again.
        reasons = (await until_readiness(keel, 503, 30))["reasons"]
        assert list(reasons) == ["vllm demo-chat"]
        for model in ("open", "guarded"):
            status, answer = await keel.chat("Hello!", model, max_tokens=5)
            assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
        assert (await keel.get("/health/live"))[0] == 200
        assert (await keel.chat("Hello!", "plain"))[0] == 200  # other engines' policies go on

        # 4. The same gateway has it back, and answers.
        await until_readiness(keel, 200, 600)
        assert engine.child.pid not in (None, killed)
        for model in ("open", "guarded"):
            status, answer = await keel.chat("Hello!", model, max_tokens=5)
            assert status == 200
            assert answer["usage"]["completion_tokens"] > 0
        metrics = (await keel.get("/metrics"))[1].decode()
        assert 'keel_vllm_restarts{name="demo-chat"} 1.0' in metrics
