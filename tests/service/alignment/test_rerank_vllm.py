"""Reranking with real vLLMs: one serves a reward model, the other's replies are begun and continued."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from policies.alignment import RewardServer
from policies.base import Upstream
from service.alignment.candidates import OWN_IDS, candidates_of
from service.alignment.rewards import Reward
from service.alignment.rewards_server import RewardServerClient
from service.engine.config import UpstreamConfig
from service.engine.engine import Engine
from service.engine.vllm_command import VllmConfig, command, environment
from tests.fixtures_vllm import VllmServer
from tests.service.conftest import Serve, text_of
from tests.training.tiny_reward import KIND, PROMPTS, RUDE, reward_model
from training.data.preferences import as_prompt
from training.reward_model import RewardModel

pytestmark = pytest.mark.vllm

OBJECTIVES = ("helpful", "harmless")
START_SECONDS = 300.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardModel, Path]:
    """A causal reward model of random weights, and its folder."""
    model = reward_model("causal", OBJECTIVES, width=64)  # heads of 32, vLLM's least
    folder = tmp_path_factory.mktemp("reward") / "model"
    model.save(folder)
    return model, folder


@pytest.fixture(scope="module")
def reward_url(trained: tuple[RewardModel, Path]) -> Iterator[str]:
    """A pooling vLLM that serves it. Such a server takes no logits processors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pooling = ("--runner", "pooling", "--convert", "classify", "--dtype", "float32", "--max-model-len", "96")
    config = VllmConfig(trained[1], "judge", arguments=pooling, kv_cache_bytes=1 << 26)
    line = command(config, port)
    for option in ("--logits-processors", "--middleware"):  # its door would ask for the gateway's key
        at = line.index(option)
        del line[at : at + 2]
    settings = {k: v for k, v in environment(config, "").items() if k != "VLLM_API_KEY"}
    server = subprocess.Popen(line, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, "the pooling vLLM ended"
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310  our own server
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail("the pooling vLLM did not start")


def described(model: RewardModel, url: str) -> RewardServer:
    """The server as a policy would describe it, by what `reward.json` says."""
    about = model.about
    deviations = [about.covariance[k][k] ** 0.5 for k in range(len(about.objectives))]
    return RewardServer(
        upstream=Upstream(base_url=url, model="judge"),
        objectives=about.objectives,
        mean=dict(zip(about.objectives, about.mean, strict=True)),
        deviation=dict(zip(about.objectives, deviations, strict=True)),
    )


async def test_a_pooling_server_scores_what_training_scores(
    trained: tuple[RewardModel, Path], reward_url: str
) -> None:
    model, _ = trained
    long = as_prompt("Tell me a story, please. " * 40)  # beyond the server's context: cut as training cuts it
    replies = [KIND, RUDE, "It is four. " * 9, ""]
    engine = Engine([UpstreamConfig("reward", reward_url)])
    await engine.start()
    try:
        for weights in ({"helpful": 1.0}, {"harmless": 2.0}):
            client = RewardServerClient(described(model, reward_url), weights, engine)
            for prompt in (*PROMPTS, long):
                turns = tuple((message.role, message.content) for message in prompt)
                got = await Reward([client], deadline=60).score(turns, replies)
                expected = model.weighted(weights).score([prompt] * len(replies), replies)
                torch.testing.assert_close(torch.tensor(got), expected, rtol=0, atol=2e-3)
    finally:
        await engine.aclose()


def policy(server: VllmServer, spec: RewardServer, settings: str) -> str:
    model = f'{{base_url: "{server.base_url}/v1", model: {server.model}, api_key_env: VLLM_TEST_KEY}}'
    reward = json.dumps(spec.model_dump(exclude_none=True))
    return f"model: {{upstream: {model}}}\nrerank: {{model: {reward}, deadline_ms: 60000, {settings}}}\n"


async def test_every_method_works_on_vllm_and_pieces_join_to_what_is_said_at_once(
    serve: Serve,
    vllm_server: VllmServer,
    trained: tuple[RewardModel, Path],
    reward_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_TEST_KEY", vllm_server.api_key)
    model, _ = trained
    spec = described(model, reward_url)
    methods = {
        "best": "n: 4, reward: {helpful: 1}",
        "adaptive": "method: adaptive, n: 4, first: 2, accept: 100, reward: {helpful: 1}",
        "speculative": "method: speculative_rejection, n: 4, block_tokens: 8, reward: {helpful: 1}",
        "blockwise": "method: blockwise, n: 3, block_tokens: 8, reward: {helpful: 1}",
    }
    policies = {name: policy(vllm_server, spec, settings) for name, settings in methods.items()}
    upstream = policies["best"].split("\n")[0] + "\n"
    question = "Hello there, who is it?"
    async with serve({**policies, "single": upstream}) as keel:
        # Nearly greedy, so that all candidates are alike and a reply in pieces has one right answer.
        sure: dict[str, Any] = {"temperature": 0.001, "max_tokens": 40}
        _, single = await keel.chat(question, model="single", temperature=0, max_tokens=40)
        text = single["choices"][0]["message"]["content"]
        for name in methods:
            code, reply = await keel.chat(question, model=name, **sure)
            assert code == 200, reply
            told = reply["guardrails"]["rerank"]
            assert "error" not in told
            assert reply["choices"][0]["message"]["content"] == text, name
            assert reply["choices"][0]["finish_reason"] == single["choices"][0]["finish_reason"]
            expected = model.weighted({"helpful": 1.0}).score([as_prompt(question)], [text])
            assert told["scores"][0] == pytest.approx(expected.item(), abs=2e-3)
        chunks = [json.loads(one) for one in (await keel.stream(question, model="blockwise", **sure))[:-1]]
        assert text_of(chunks) == text

        # What the gateway asks its own vLLM: each choice tells its tokens.
        asked = {"model": vllm_server.model, "messages": [{"role": "user", "content": question}], "n": 3}
        headers = {"authorization": f"Bearer {vllm_server.api_key}"}
        url = f"{vllm_server.base_url}/v1/chat/completions"
        body = {**asked, OWN_IDS: True, "max_tokens": 16, "temperature": 1.2}
        async with keel.session.post(url, json=body, headers=headers) as response:
            raw = await response.json()
        counted = [one.tokens for one in candidates_of(raw)]
        assert counted == [len(choice["token_ids"]) for choice in raw["choices"]]
        assert sum(counted) == raw["usage"]["completion_tokens"]

        # Warm: candidates differ, the best of them is the reply, and halving saves tokens.
        _, reply = await keel.chat(question, model="best", temperature=1.2, max_tokens=32, seed=1, n=2)
        assert len(reply["choices"]) == 2
        assert reply["guardrails"]["rerank"]["candidates"] == 8
        _, reply = await keel.chat(question, model="speculative", temperature=1.2, max_tokens=64, seed=1)
        assert reply["guardrails"]["rerank"]["method"] == "speculative_rejection"
        assert reply["guardrails"]["rerank"]["tokens"] < 4 * 64
