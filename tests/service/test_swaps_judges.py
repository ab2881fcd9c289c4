"""Swaps of what judges, reward models and guards' classifiers, while it judges."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.manifest import Kind
from policies.registry import Registry
from service.hotload.swaps import Wish
from tests.hotload import Change, cut, publish_folder, spoil_json, spoil_weights
from tests.service.conftest import HOT_MODEL, Hot, Running, until

pytestmark = pytest.mark.timeout(600)

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
Judgement = tuple[str, float]
"""A classifier or reward model, and its score."""


def publish_like(
    root: Path, shipped: str, name: str, kind: Kind, change: Change = lambda folder: None
) -> str:
    """A copy of a shipped checkpoint that `change` has altered; as `models` name it in a response."""
    source = root.parent / f"source-{name}"
    shutil.copytree(CHECKPOINTS / shipped, source)
    change(source)
    made = publish_folder(root, source, name, kind)
    return f"{made.name}@{made.digest[:16]}"


async def told_of(keel: Running) -> dict[str, Any]:
    """The `guardrails` field of a reply to an insult."""
    code, reply = await keel.chat("You are a stupid idiot.", "hot")
    assert code == 200, reply
    told: dict[str, Any] = reply["guardrails"]
    return told


@asynccontextmanager
async def judged(
    keel: Running, read: Callable[[dict[str, Any]], Judgement]
) -> AsyncIterator[list[Judgement]]:
    """Two callers while the block lasts; who judged their replies, and with which score."""
    seen: list[Judgement] = []
    ended = asyncio.Event()

    async def one() -> None:
        while not ended.is_set():
            seen.append(read(await told_of(keel)))

    async with asyncio.TaskGroup() as group:
        group.create_task(one())
        group.create_task(one())
        try:
            yield seen
        finally:
            ended.set()


async def swaps_of_a_judge(
    keel: Running,
    alias: str,
    one: str,
    two: str,
    bad: dict[str, str],
    read: Callable[[dict[str, Any]], Judgement],
) -> None:
    """There, refused, and back under traffic: every score is that of the model that is named beside it."""
    scores = dict([read(await told_of(keel))])
    assert scores.keys() == {one}
    async with judged(keel, read) as seen:
        assert (await keel.gateway.swaps.swap(Wish(alias, two))).outcome == "promoted"
        await until(lambda: two in {name for name, _ in seen}, 240)
        scores |= dict([read(await told_of(keel))])
        assert scores.keys() == {one, two}
        assert abs(scores[one] - scores[two]) > 0.05

        served = keel.gateway.catalog.get("hot")
        for name, why in bad.items():
            workers = {worker.pid for worker in keel.gateway.runtime.workers()}
            result = await keel.gateway.swaps.swap(Wish(alias, name))
            assert result.outcome == "refused"
            assert why in result.reason
            assert {worker.pid for worker in keel.gateway.runtime.workers()} == workers
        assert keel.gateway.catalog.get("hot") is served
        assert Registry(keel.gateway.settings.checkpoints).resolve(alias).ref.startswith(two)

        before = len(seen)
        assert (await keel.gateway.swaps.swap(Wish(alias, why="rollback"))).outcome == "rolled_back"
        await until(lambda: one in {name for name, _ in seen[before:]}, 240)
    assert all(score == pytest.approx(scores[name], abs=2e-3) for name, score in seen)


async def test_a_guards_classifier_is_swapped_as_a_model_is(hot: Hot, root: Path) -> None:
    def milder(folder: Path) -> None:
        about = json.loads((folder / "classifier.json").read_text())
        about["calibration"]["toxicity"] = [0.3, -0.5]
        (folder / "classifier.json").write_text(json.dumps(about))

    def mute(folder: Path) -> None:
        about = json.loads((folder / "classifier.json").read_text())
        spoil_json("classifier.json", labels=[f"{label}_" for label in about["labels"]])(folder)

    one, two = (
        publish_like(root, "keel-guard", name, "classifier", change)
        for name, change in (("guard-one", lambda _: None), ("guard-two", milder))
    )
    publish_like(root, "keel-guard", "guard-cut", "classifier", cut("model.onnx", 100_000))
    publish_like(root, "keel-guard", "guard-mute", "classifier", mute)
    Registry(root).point("guard", one)
    watched = HOT_MODEL + "input:\n  - {guard: toxicity, model: guard, threshold: 0.01, action: allow}\n"

    def read(told: dict[str, Any]) -> Judgement:
        (guard,), found = told["guards"], told["input"]
        (model,) = guard["models"]
        return model, max(finding["score"] for finding in found if finding["guard"] == "toxicity")

    async with hot({"hot": watched}) as keel:
        bad = {"guard-cut": "can't be loaded", "guard-mute": "lacks the labels", "base": "can't stand in for"}
        await swaps_of_a_judge(keel, "guard", one, two, bad, read)


async def test_a_reward_model_is_swapped_as_a_model_is(hot: Hot, root: Path) -> None:
    def head(change: Callable[[np.ndarray], np.ndarray]) -> Change:
        return spoil_weights(
            lambda weights: weights.update({"score.weight": change(weights["score.weight"])})
        )

    one = publish_like(root, "demo-reward", "reward-one", "reward")
    two = publish_like(root, "demo-reward", "reward-two", "reward", head(lambda weight: -weight))
    publish_like(root, "demo-reward", "reward-nan", "reward", head(lambda weight: weight * np.float16("nan")))
    Registry(root).point("judge", one)
    choosing = HOT_MODEL + "rerank: {model: judge, n: 2, on_error: fail, deadline_ms: 60000}\n"

    def read(told: dict[str, Any]) -> Judgement:
        (model,), (score,) = told["rerank"]["models"], told["rerank"]["scores"]
        return model, score

    async with hot({"hot": choosing}) as keel:
        bad = {"reward-nan": "holds NaN or infinity", "base": "can't stand in for"}
        await swaps_of_a_judge(keel, "judge", one, two, bad, read)
