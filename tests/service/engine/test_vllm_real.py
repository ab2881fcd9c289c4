"""The main points of a managed vLLM's life, with the real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from service.engine import (
    Engine,
    Interrupted,
    UpstreamConfig,
    UpstreamStatusError,
    VllmConfig,
)
from service.engine.vllm_process import ManagedVllm
from tests.fixtures_vllm import VllmServer
from tests.service.engine.children import PATH, until

# The real thing


@pytest.mark.vllm
@pytest.mark.timeout(1500)
async def test_real_vllm_dies_in_mid_stream_and_comes_back(vllm_checkpoint: Path) -> None:
    body = json.dumps(
        {
            "model": "chat",
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    phases: list[str] = []
    child = ManagedVllm(VllmConfig(vllm_checkpoint, "chat", backoff_seconds=0.1), on_phase=phases.append)
    engine = Engine.managed(child)
    await engine.start()
    try:
        await engine.wait_ready(600)
        assert "loading the weights" in phases

        # 1. It streams.
        async with engine.stream(PATH, body) as events:
            assert len([payload async for payload in events]) > 50

        # 2. A stream that is left is aborted upstream.
        async with engine.stream(PATH, body) as events:
            await anext(events)
            await anext(events)
        await _until_idle(engine)

        # 3. Its death interrupts every stream, and readiness is gone at once.
        group = child.pid
        assert group is not None
        streams = [await engine.open_stream(PATH, body) for _ in range(3)]
        os.kill(group, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(Interrupted):
                async for _ in stream:
                    pass
        ready_after_death = engine.ready
        await until(lambda: not _group_members(group or 0))

        # 4. It comes back, and the same engine serves.
        assert not ready_after_death
        await engine.wait_ready(600)
        async with engine.stream(PATH, body) as events:
            assert len([payload async for payload in events]) > 50
        assert child.restarts == 1
        group = child.pid
        assert group is not None
    finally:
        await engine.aclose(drain=5)
    await until(lambda: not _group_members(group))


@pytest.mark.vllm
@pytest.mark.timeout(1500)
async def test_real_vllm_answers_who_has_its_key(vllm_server: VllmServer) -> None:
    upstream = UpstreamConfig("vllm", vllm_server.base_url, api_key=vllm_server.api_key)
    stranger = UpstreamConfig("stranger", vllm_server.base_url, api_key="guess")
    body = json.dumps(
        {"model": vllm_server.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    ).encode()
    engine, other = Engine([upstream]), Engine([stranger])
    await engine.start()
    await other.start()
    reply = json.loads((await engine.complete(PATH, body)).body)
    assert reply["usage"]["completion_tokens"] <= 5
    with pytest.raises(UpstreamStatusError) as caught:
        await other.complete(PATH, body)
    assert caught.value.status == 401
    wrong = body.replace(b'"max_tokens": 5', b'"max_tokens": -5')
    with pytest.raises(UpstreamStatusError) as caught:
        await engine.complete(PATH, wrong)
    assert caught.value.status == 400
    assert "max_tokens" in json.loads(caught.value.body)["error"]["message"]
    await engine.aclose()
    await other.aclose()


@pytest.mark.vllm
async def test_requests_with_seeds_and_more_prompt_than_one_step_reads_do_not_end_it(
    vllm_server: VllmServer,
) -> None:
    """A prompt that is cut over two steps, with a seed, ended vLLM's engine on a CPU."""
    engine = Engine([UpstreamConfig("vllm", vllm_server.base_url, api_key=vllm_server.api_key)])
    await engine.start()
    asked = [
        json.dumps(
            {
                "model": vllm_server.model,
                "messages": [{"role": "user", "content": f"{number} and {'so on ' * 150}"}],
                "max_tokens": 2,
                "seed": number,
            }
        ).encode()
        for number in range(40)
    ]
    replies = await asyncio.gather(*(engine.complete(PATH, body) for body in asked))
    assert all(json.loads(reply.body)["choices"] for reply in replies)
    await engine.aclose()


async def _until_idle(engine: Engine, seconds: float = 10) -> None:
    """Wait until vLLM runs no request; it says itself how many it does."""
    gauge = re.compile(r"^vllm:num_requests_running\{[^}]*\} (\S+)$", re.MULTILINE)
    async with asyncio.timeout(seconds):
        running = 1.0
        while running:
            metrics = (await engine.complete("/metrics", None, method="GET")).body.decode()
            running = sum(map(float, gauge.findall(metrics)))


def _group_members(group: int) -> list[int]:
    """The processes of a process group, zombies aside."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                members.append(int(stat.parent.name))
    return members
