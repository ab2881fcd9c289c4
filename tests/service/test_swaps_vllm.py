"""Checkpoints that take each other's place in a real vLLM, while callers stream."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policies.registry import Registry
from service.hotload.swaps import SwapResult, Wish
from tests.hotload import publish_adapter, publish_folder, spoil_json
from tests.service.conftest import Running, Serve, events
from tests.service.conftest import until as until_within

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo-chat"
CANARY = """
prompts: ["Hello!", "And now?"]
max_tokens: 12
limits: {repetitive: 1.0, logprob_drop: 4.0}
"""
PROMPTS = ("Hello! How are you today?", "What do you like to do in summer?", "Do you have a pet?")
CALLERS = 4
SETTINGS: dict[str, Any] = {
    # In 32 bits a greedy reply is the same whoever is answered beside it.
    "engine": {
        "adapters": True,
        "max_adapter_rank": 8,
        "swap": "in_place",
        "vllm_args": ["--dtype", "float32"],
    },
    "drain_timeout_s": 120.0,
}
Seen = list[tuple[str, str, str]]
"""Checkpoint, prompt and reply of each stream."""


async def until(condition: Callable[[], Any]) -> None:
    """Wait, on a machine that may be busy."""
    await until_within(condition, 240)


def untied_demo(root: Path, name: str, noise: float) -> None:
    """The demo model with an unembedding of its own, and all of its matrices changed by a share `noise`."""
    source = root.parent / f"source-{name}"
    source.mkdir()
    for path in DEMO.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    spoil_json("config.json", tie_word_embeddings=False)(source)
    weights = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    torch.manual_seed(0)
    for tensor in weights.values():
        if tensor.ndim == 2:
            tensor += noise * tensor.std() * torch.randn_like(tensor)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    publish_folder(root, source, name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two full checkpoints of the same shapes, and two adapters of the first, which `chat` means."""
    root = tmp_path / "checkpoints"
    root.mkdir()
    untied_demo(root, "first", 0.0)
    untied_demo(root, "second", 0.5)
    for seed, name in enumerate(("ad-one", "ad-two")):
        publish_adapter(root, name, Registry(root).resolve("first"), seed, scale=0.12)
    Registry(root).point("chat", "first")
    return root


async def say(keel: Running, prompt: str) -> tuple[str, str]:
    """The checkpoint that the header names, and its greedy reply, streamed to a proper end."""
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "hot", "messages": messages, "stream": True, "temperature": 0, "max_tokens": 24}
    async with keel.session.post(keel.url + "/v1/chat/completions", json=body) as response:
        raw = await response.read()
        assert response.status == 200, raw
    *chunks, done = map(bytes, events(raw))
    assert done == b"[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert not any("error" in chunk for chunk in parsed), parsed[-1]
    text = "".join(choice["delta"].get("content") or "" for c in parsed for choice in c["choices"])
    return response.headers["x-keel-checkpoint"], text


async def alone(keel: Running) -> dict[tuple[str, str], str]:
    """What answers now, asked one prompt after the other."""
    found = {}
    for prompt in PROMPTS:
        checkpoint, text = await say(keel, prompt)
        found[checkpoint, prompt] = text
    return found


@asynccontextmanager
async def load(keel: Running, seen: Seen) -> AsyncIterator[None]:
    """Callers who ask one prompt after the other while the block lasts."""
    ended = asyncio.Event()
    turns = itertools.cycle(PROMPTS)

    async def one() -> None:
        while not ended.is_set():
            prompt = next(turns)
            checkpoint, text = await say(keel, prompt)
            seen.append((checkpoint, prompt, text))

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(one())
        try:
            yield
        finally:
            ended.set()


async def swap(keel: Running, seen: Seen, ref: str | None = None) -> SwapResult:
    """Promote, or roll back, and wait until callers have been answered by what the alias means then."""
    result = await keel.gateway.swaps.swap(Wish("chat", ref, "promote" if ref else "rollback"))
    assert result.ok, result.reason
    before = len(seen)
    await until(lambda: result.ref in {checkpoint for checkpoint, *_ in seen[before:]})
    return result


def told(result: SwapResult) -> dict[str, str]:
    return dict(result.steps)


async def test_replies_are_word_for_word_those_of_the_checkpoint_in_their_header(
    serve: Serve, root: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary.yaml"
    canary.write_text(CANARY)
    hotload = {"watch": False, "canary": canary}
    policies = {"hot": "model: {checkpoint: chat}\n"}
    seen: Seen = []
    async with serve(policies, checkpoints=root, hotload=hotload, **SETTINGS) as keel:
        engine = keel.gateway.catalog.get("hot").target.engine
        child = engine.child
        assert child is not None
        pid = child.pid
        expected = await alone(keel)
        for name in ("ad-one", "ad-two"):
            assert (await keel.gateway.swaps.swap(Wish("chat", name))).outcome == "promoted"
            expected |= await alone(keel)

        # 1. Adapters, there and back; then a full checkpoint, read by the vLLM that runs.
        async with load(keel, seen):
            assert (await swap(keel, seen)).outcome == "rolled_back"
            await swap(keel, seen, "ad-two")
            await swap(keel, seen, "first")
            await until(lambda: not engine.adapters.loaded)
            read = told(await swap(keel, seen, "second"))
            assert read["load"] == "read in place, the prefix cache is reset"
        second = await alone(keel)
        expected |= second
        told_apart = {(prompt, text) for (_, prompt), text in expected.items()}
        assert len(told_apart) == len(expected) == 4 * len(PROMPTS)

        # 2. Back to the former weights in the same process.
        async with load(keel, seen):
            assert "hold" in told(await swap(keel, seen))
            assert (child.pid, child.restarts) == (pid, 0)

            # 3. What can't be read in place is loaded by a second vLLM, which takes over.
            await swap(keel, seen, "ad-one")
            taken = told(await swap(keel, seen, "second"))
            assert taken["beside"] == "not in place: an adapter is loaded, not read in place"
        await until(lambda: child.state == "stopped")
        assert keel.gateway.catalog.get("hot").target.engine is not engine
        assert await alone(keel) == second  # as read in place, so read from the start

    wrong = [one for one in seen if expected[one[0], one[1]] != one[2]]
    assert not wrong, f"{len(wrong)} of {len(seen)} replies: {wrong[0]}"
    assert {checkpoint.partition("@")[0] for checkpoint, *_ in seen} == {
        "first",
        "second",
        "ad-one",
        "ad-two",
    }
