"""Managed vLLMs, stand-ins or real, for the tests of their life."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from service.engine import (
    Engine,
)
from service.engine.observer import NullObserver
from service.engine.vllm_process import ManagedVllm

PATH = "/v1/chat/completions"
SECRET = "Secret-Prompt-Words"
BODY = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": SECRET}]}).encode()


class States(NullObserver):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def child(self, name: str, state: str, restarts: int) -> None:
        self.seen.append(state)


@contextlib.asynccontextmanager
async def running(child: ManagedVllm) -> AsyncIterator[Engine]:
    engine = Engine.managed(child)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - processes have no event
            await asyncio.sleep(0.01)


def exists(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def read_proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


async def words(engine: Engine) -> list[str]:
    async with engine.stream(PATH, BODY) as events:
        return [json.loads(payload)["choices"][0]["delta"].get("content") or "" async for payload in events]
