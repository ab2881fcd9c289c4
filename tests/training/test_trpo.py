"""TRPO on a tiny transformer: every step stays in its region, and it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.training.tiny import tiny_model, tiny_prompts, tiny_tokenizer, write_tiny
from training.data.preferences import Prompt
from training.methods.trpo import TrpoConfig, TrpoResult, run_trpo, train_trpo
from training.rl.actor_critic import ActorCritic
from training.rl.kl import KlConfig
from training.rl.sampling import SampleConfig
from training.rl.trust_region import TrustRegionConfig


def vowels(prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
    """The share of a reply's characters that are an `o`, or an `e`: dense enough for a few small steps."""
    return torch.tensor([10 * sum(c in "oe" for c in reply) / max(len(reply), 1) for reply in replies])


def config(**changes: Any) -> TrpoConfig:
    settings: dict[str, Any] = {
        "name": "tiny",
        "steps": 2,
        "rollouts": 16,
        "sample": SampleConfig(max_new_tokens=8),
        "kl": KlConfig(coef=0.01),
        "region": TrustRegionConfig(max_kl=0.05, damping=1e-3),
    }
    return TrpoConfig(**settings | changes)


def train(settings: TrpoConfig, **options: Any) -> TrpoResult:
    tokenizer = tiny_tokenizer()
    return train_trpo(tiny_model(tokenizer), tokenizer, settings, tiny_prompts(), vowels, **options)


def test_it_learns_and_every_step_stays_in_its_region() -> None:
    history = train(config(steps=12, rollouts=48)).history
    assert all(record["step_kl"] <= 0.05 for record in history)
    accepted = [record for record in history if record["accepted"]]
    assert len(accepted) >= 10
    assert all(record["improvement"] > 0 and record["step_kl"] > 0.005 for record in accepted)
    first, last = (sum(r["reward"] for r in part) / 3 for part in (history[:3], history[-3:]))
    assert last > first + 0.3


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_values_are_fitted_without_touching_the_policy(value: str) -> None:
    tiny = TrustRegionConfig(max_kl=1e-12, damping=1.0)
    result = train(config(value=value, region=tiny, steps=6, value_learning_rate=0.02))
    tokenizer = tiny_tokenizer()
    fresh = tiny_model(tokenizer)
    for (name, a), b in zip(fresh.named_parameters(), result.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=name)
    start = ActorCritic(fresh, value)  # type: ignore[arg-type]
    assert not torch.equal(start.head.weight, result.actor.head.weight)
    assert result.history[-1]["value_loss"] < result.history[0]["value_loss"]


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = config(steps=3, checkpoint_every=1)
    whole = train(settings)
    train(settings, run=tmp_path / "run", stop_after=1)
    resumed = train(settings, run=tmp_path / "run")
    for a, b in zip(whole.actor.parameters(), resumed.actor.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bfloat16_is_refused() -> None:
    with pytest.raises(ValidationError, match="precision: fp32"):
        config(precision="bf16")


def test_the_command_trains_from_a_folder_to_a_folder(tmp_path: Path) -> None:
    settings = TrpoConfig.load(
        Path(__file__).parents[2] / "training/configs/trpo.yaml",
        [
            f"model={{path: {write_tiny(tmp_path / 'base')}, origin: made here, licence: MIT}}",
            "steps=1",
            "rollouts=4",
            "value_minibatches=2",
            "sample.max_new_tokens=4",
            "data.demo=40",
        ],
    )
    assert (run_trpo(settings, tmp_path, tmp_path / "run") / "model.safetensors").is_file()
