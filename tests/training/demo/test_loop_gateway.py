"""A running gateway goes over to what an alias means now; OpenAI's client sees which checkpoint answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.registry import Registry
from training.errors import TrainingError
from training.loop.gateway import serving
from training.publish import Draft, publish

DEMO = Path(__file__).parents[3] / "checkpoints" / "demo-chat"


def published(root: Path, name: str) -> str:
    draft = Draft(name=name, kind="full", method="sft", config={}, seed=0, code_revision="test")
    return publish(DEMO, root, draft).ref


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_gateway_takes_the_new_checkpoint_without_a_restart(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    old, new = published(root, "shop-old"), published(root, "shop-new")
    registry = Registry(root)
    registry.point("shop", old)
    with serving(root, "shop", tmp_path / "work") as gateway:
        before = gateway.ask("Hello!")
        registry.point("shop", new)
        assert gateway.ask("Hello!").checkpoint == old  # not before it is told
        gateway.reload()
        after = gateway.ask("Hello!")
    assert (before.checkpoint, after.checkpoint) == (old, new)
    assert before.text == after.text != ""  # the same weights, asked greedily


def test_a_gateway_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with (
        pytest.raises(TrainingError, match="no checkpoint 'shop'"),
        serving(tmp_path / "checkpoints", "shop", tmp_path / "work", limit_s=300),
    ):
        pass
