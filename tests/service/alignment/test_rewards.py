"""Rewards: the guard worker scores as training does, a server's raw scores are mixed, and faults are told."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from guardrails.reward import problems, reward_checkpoint
from guardrails.reward_torch import serve_checkpoint, serve_folder
from guardrails.runtime import Runtime
from policies.alignment import RerankSpec, RewardServer
from policies.base import Upstream
from policies.manifest import CheckpointError
from policies.registry import Registry
from service.alignment.rewards import EmbeddedReward, Reward, RewardError, conversation_of, reply_text
from service.alignment.rewards_server import RewardServerClient
from service.engine.config import TimeLimits, UpstreamConfig
from service.engine.engine import Engine
from tests.fakes.upstream import (
    Behaviour,
    FakeUpstream,
    answer,
    raw_bytes,
    reset_at_once,
    stall_before_headers,
    status,
)
from tests.service.alignment.reward_server import choosing, only, scoring
from tests.training.tiny_reward import PROMPTS, REPLIES, reward_model
from training.data.preferences import as_prompt
from training.publish import Draft, publish
from training.reward_model_ensemble import save_ensemble

CONVERSATION = (("user", "Hello there, who is it?"),)
TWO = ("helpful", "harmless")


def turns(prompt: Any) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, message.content) for message in prompt)


# The embedded model


@pytest.mark.parametrize("kind", ["causal", "encoder"])
@pytest.mark.parametrize("objectives", [("overall",), TWO])
def test_a_worker_scores_what_training_scores(kind: str, objectives: tuple[str, ...], tmp_path: Path) -> None:
    trained = reward_model(kind, objectives)
    trained.save(tmp_path / "model")
    checkpoint = reward_checkpoint(str(tmp_path / "model"), Registry(tmp_path))
    served = serve_folder(str(tmp_path / "model"))
    long = as_prompt("Tell me a story, please. " * 40)  # beyond max_length: both cut it alike
    several = as_prompt(
        [
            {"role": "system", "content": "You are kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello there."},
            {"role": "user", "content": "Who is it?"},
        ]
    )
    for weights in ({}, {objectives[0]: 2.0, objectives[-1]: 0.5}):
        model = trained.weighted(weights) if weights else trained
        mixing = checkpoint.members[0].mixing(weights)
        for prompt in (*PROMPTS, long, several):
            expected = model.score([prompt] * len(REPLIES), REPLIES)
            answers = served.predict([(turns(prompt), reply) for reply in REPLIES])
            got = [sum(w * z for w, z in zip(mixing, one[0], strict=True)) for one in answers]
            torch.testing.assert_close(torch.tensor(got), expected, rtol=0, atol=2e-5)


async def test_an_ensembles_members_are_told_apart_and_disagreement_costs(tmp_path: Path) -> None:
    members = [reward_model("causal"), reward_model("encoder")]
    save_ensemble(tmp_path / "both", members, "uncertainty", 1.0)
    checkpoint = reward_checkpoint(str(tmp_path / "both"), Registry(tmp_path))
    runtime = Runtime(workers=1)
    await runtime.start([checkpoint.servable])
    try:
        member = EmbeddedReward(checkpoint, {}, runtime)
        for uncertainty in (0.0, 1.0):
            got = await Reward([member], uncertainty=uncertainty, deadline=60).score(CONVERSATION, REPLIES)
            scores_MN = torch.stack([model.score([PROMPTS[0]] * 3, REPLIES) for model in members])
            expected = scores_MN.mean(dim=0) - uncertainty * scores_MN.std(dim=0, unbiased=False)
            torch.testing.assert_close(torch.tensor(got), expected, rtol=0, atol=2e-5)
        with pytest.raises(RewardError) as caught:
            await Reward([member], deadline=0.001).score(CONVERSATION, ["something new"])
        assert caught.value.reason == "timeout"
    finally:
        await runtime.aclose()


async def test_a_published_reward_model_chooses_what_training_would(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    model = reward_model("encoder", ("helpful", "harmless"))
    model.save(tmp_path / "reward")
    root = tmp_path / "checkpoints"
    draft = Draft("judge-1", "reward", "reward", config={}, seed=0, code_revision="abc")
    published = publish(tmp_path / "reward", root, draft, alias="judge")
    replies = ["No.", "You are kind. Hello there.", "It is four. It is four.", "I cannot do that."]
    question = "Hello there, who is it?"
    text = "rerank: {model: judge, n: 4, reward: {harmless: 1}, deadline_ms: 60000}\n"
    async with serve({"mine": text}, checkpoints=root) as keel:
        keel.upstream.default = choosing(*replies)
        _, reply = await keel.chat(question, model="mine")
        scores = model.weighted({"harmless": 1.0}).score([as_prompt(question)] * 4, replies).tolist()
        best = max(range(4), key=scores.__getitem__)
        assert reply["choices"][0]["message"]["content"] == replies[best]
        assert reply["guardrails"]["rerank"]["scores"] == [pytest.approx(scores[best], abs=1e-3)]
    (root / "judge-1" / "reward.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"reward\.json"):  # every byte is verified before it is loaded
        serve_checkpoint(str(root), published.ref)


def test_a_folder_that_is_no_reward_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder"):
        reward_checkpoint("./nowhere", registry)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"reward\.json can't be read"):
        reward_checkpoint(str(tmp_path / "empty"), registry)
    (tmp_path / "empty" / "reward.json").write_text('{"kind": "causal"}')
    with pytest.raises(CheckpointError, match="not a reward model's description"):
        reward_checkpoint(str(tmp_path / "empty"), registry)


def test_weights_of_objectives_that_a_model_does_not_have_are_told(tmp_path: Path) -> None:
    reward_model("causal", TWO).save(tmp_path / "model")
    spec = RerankSpec(model=str(tmp_path / "model"), reward={"helpful": 1, "polite": 1})
    (problem,) = problems(spec, Registry(tmp_path))
    assert problem.loc == ("reward", "polite")
    assert "helpful, harmless" in problem.message
    with pytest.raises(ValueError, match="weight 0"):
        RerankSpec(model="m", reward={"helpful": 0})


# A server


def server_spec(upstream: FakeUpstream, **fields: Any) -> RewardServer:
    return RewardServer(upstream=Upstream(base_url=upstream.base_url, model="judge"), **fields)


async def ask(
    upstream: FakeUpstream, replies: Sequence[str], weights: dict[str, float] | None = None, **fields: Any
) -> list[float]:
    engine = Engine([UpstreamConfig("reward", upstream.base_url)], times=TimeLimits(connect=2, total=20))
    await engine.start()
    try:
        client = RewardServerClient(server_spec(upstream, **fields), weights or {}, engine)
        return await Reward([client], deadline=0.5).score(CONVERSATION, replies)
    finally:
        await engine.aclose()


async def test_all_replies_are_scored_by_one_request_in_their_order() -> None:
    async with FakeUpstream(scoring(lambda text: [len(text)])) as upstream:
        got = await ask(upstream, ["a", "ccc", "bb", "a"])
        whole = len("<user>Hello there, who is it?<assistant>")
        assert got == [whole + 1, whole + 3, whole + 2, whole + 1]
        classified = [request for request in upstream.requests if request.path == "/classify"]
        assert len(classified) == 1
        assert len(classified[0].json["input"]) == 3  # the equal ones once


async def test_a_servers_objectives_are_standardised_and_weighted() -> None:
    async with FakeUpstream(scoring(lambda text: [float(text[-1]), 10.0])) as upstream:
        fields: dict[str, Any] = {
            "objectives": TWO,
            "mean": {"helpful": 2.0, "harmless": 4.0},
            "deviation": {"harmless": 3.0},
        }
        got = await ask(upstream, ["5", "9"], {"helpful": 3.0, "harmless": 4.0}, **fields)
        assert got == pytest.approx([(3 * 3 + 4 * 2) / 5, (3 * 7 + 4 * 2) / 5])
        alike = await ask(upstream, ["5"], **fields)
        assert alike == pytest.approx([(3 + 2) / math.sqrt(2)])


async def test_what_is_too_long_for_the_model_loses_its_beginning() -> None:
    seen: list[str] = []

    def score(text: str) -> list[float]:
        seen.append(text)
        return [0.0]

    async with FakeUpstream(scoring(score, longest=8)) as upstream:
        await ask(upstream, ["the end."])
    assert seen == ["the end."]


LIES: dict[str, tuple[str, Behaviour, str]] = {
    "stall": ("/classify", stall_before_headers(), "timeout"),
    "stalled tokenizer": ("/tokenize", stall_before_headers(), "timeout"),
    "reset": ("/classify", reset_at_once(), "failed"),
    "not HTTP": ("/classify", raw_bytes(b"what?"), "invalid"),
    "status": ("/classify", status(400), "failed"),
    "no JSON": ("/classify", answer("scores"), "invalid"),
    "no data": ("/classify", answer({"data": []}), "invalid"),
    "one too few": ("/classify", answer({"data": [{"index": 0, "probs": [1.0]}]}), "invalid"),
    "same index twice": (
        "/classify",
        answer({"data": [{"index": 0, "probs": [1.0]}, {"index": 0, "probs": [1.0]}]}),
        "invalid",
    ),
    "other outputs": (
        "/classify",
        answer({"data": [{"index": i, "probs": [1.0, 2.0]} for i in range(2)]}),
        "invalid",
    ),
    "not a number": (
        "/classify",
        answer({"data": [{"index": i, "probs": [math.nan]} for i in range(2)]}),
        "invalid",
    ),
    "beyond all numbers": (
        "/classify",
        raw_bytes(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 70\r\n\r\n"
            + json.dumps({"data": [{"index": i, "probs": ["X"]} for i in range(2)]})
            .replace('"X"', "1e999")
            .encode()
            .ljust(70)
        ),
        "invalid",
    ),
    "no tokens": ("/tokenize", answer({"tokens": [], "max_model_len": 5}), "invalid"),
}


@pytest.mark.parametrize("fault", LIES)
async def test_a_server_that_stalls_dies_or_lies_is_told_and_never_believed(fault: str) -> None:
    path, behaviour, reason = LIES[fault]
    async with FakeUpstream(only(path, behaviour, scoring(lambda text: [1.0]))) as upstream:
        with pytest.raises(RewardError) as caught:
            await asyncio.wait_for(ask(upstream, ["a", "b"]), 10)
        assert caught.value.reason == reason


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    async with FakeUpstream() as upstream:
        pass
    with pytest.raises(RewardError) as caught:
        await ask(upstream, ["a"])
    assert caught.value.reason == "unreachable"


# What is read


def test_a_conversation_is_read_as_text_whoever_speaks() -> None:
    payload: dict[str, Any] = {
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image_url"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "look", "arguments": '{"at":1}'}}],
            },
            {"role": "tool", "content": "a cat"},
        ]
    }
    assert conversation_of(payload) == (
        ("system", "Be kind."),
        ("user", "Look:"),
        ("assistant", '{"name":"look","arguments":"{\\"at\\":1}"}'),
        ("user", "a cat"),
    )
    assert conversation_of({"prompt": "Once"}) == (("user", "Once"),)
    assert reply_text({"text": " upon a time"}) == " upon a time"
