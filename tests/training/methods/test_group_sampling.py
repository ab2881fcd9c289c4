"""GRPO and RLOO: groups of the policy's own replies, sampled here, scored by any reward function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.training.methods.preference_data import adapted
from tests.training.tiny import tiny_model, tiny_prompts, tiny_tokenizer, write_tiny
from training.data.preferences import Prompt, write_prompts
from training.errors import TrainingError
from training.methods.dpo_trainer import adapters_of
from training.methods.group_sampling import GroupConfig
from training.methods.grpo import GrpoConfig, run_grpo, train_grpo
from training.methods.rloo import RlooConfig, run_rloo, train_rloo
from training.models import ModelSource
from training.provenance import RunRecord

TOKENIZER = tiny_tokenizer()
PROMPTS = tiny_prompts()


class Method(NamedTuple):
    config: type[GroupConfig]
    train: Any
    run: Any


METHODS = {
    "grpo": Method(GrpoConfig, train_grpo, run_grpo),
    "rloo": Method(RlooConfig, train_rloo, run_rloo),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def config(method: Method, **options: Any) -> GroupConfig:
    settings = {
        "name": "tiny",
        "model": {"path": "unused"},
        "data": {"demo": 1},
        "steps": 12,
        "batch_size": 32,
        "micro_batch": 32,
        "group_size": 8,
        "max_new_tokens": 6,
        "learning_rate": 1e-2,
        "log_every": 2,
        "checkpoint_every": 2,
        "max_length": 128,
        **options,
    }
    return method.config.model_validate(settings)


def vowels(prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
    """The share of a reply's characters that are an e: easily learnt, and blind to the prompt."""
    return torch.tensor([reply.count("e") / max(len(reply), 1) for reply in replies])


def brief(prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
    return torch.tensor([-float(len(reply)) for reply in replies])


@each_method
def test_the_reward_of_sampled_replies_rises(method: Method) -> None:
    model = tiny_model(TOKENIZER)
    settings = config(method, steps=30, schedule="constant", learning_rate=2e-2)
    result = method.train(model, TOKENIZER, settings, PROMPTS, vowels, held_out=PROMPTS * 8)
    assert result.before is not None and result.after is not None
    assert result.after.low > result.before.high
    assert result.history[-1]["reward"] > result.history[0]["reward"]
    assert result.model is model and "forward" not in vars(model)


@each_method
def test_a_lora_learns_and_keeps_no_second_adapter(method: Method) -> None:
    model = adapted(TOKENIZER)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    method.train(model, TOKENIZER, config(method, steps=2, beta=0.1), PROMPTS, vowels)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert adapters_of(model) == {"default"}


@each_method
def test_the_reference_is_what_the_model_in_memory_was(method: Method) -> None:
    """At the first step policy and reference are the same, so the KL is 0; then they part."""
    model = tiny_model(TOKENIZER, seed=3)
    settings = config(method, beta=0.01, steps=3, log_every=1, checkpoint_every=1)
    history = method.train(model, TOKENIZER, settings, PROMPTS, vowels).history
    assert history[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(history[-1]["kl"]) > 1e-4
    assert not model.config._name_or_path


@each_method
def test_several_rewards_are_weighted(method: Method) -> None:
    weights = [{"rule": "brevity", "weight": 0.0}, {"rule": "brevity", "weight": 2.0}]
    result = method.train(
        tiny_model(TOKENIZER),
        TOKENIZER,
        config(method, steps=2, rewards=weights),
        PROMPTS,
        {"vowels": vowels, "brief": brief},
        held_out=PROMPTS,
    )
    first = result.history[0]
    assert first["reward"] == pytest.approx(2 * first["rewards/brief/mean"], rel=1e-4)
    assert result.before is not None and result.before.value < -1


@each_method
def test_what_cannot_be_trained_on_is_refused(method: Method) -> None:
    model = tiny_model(TOKENIZER)
    with pytest.raises(TrainingError, match="no reward"):
        method.train(model, TOKENIZER, config(method), PROMPTS)
    with pytest.raises(TrainingError, match="no prompt is left"):
        method.train(model, TOKENIZER, config(method, max_length=8), PROMPTS, vowels)
    with pytest.raises(TrainingError, match="is nan"):
        not_a_number = lambda prompts, replies: torch.full((len(replies),), torch.nan)  # noqa: E731
        method.train(model, TOKENIZER, config(method), PROMPTS, not_a_number)
    with pytest.raises(ValidationError, match="multiple of group_size"):
        config(method, batch_size=12, micro_batch=12)


@each_method
def test_a_run_leaves_a_model_and_its_record(method: Method, tmp_path: Path) -> None:
    write_tiny(tmp_path / "base")
    write_prompts(tmp_path / "prompts.jsonl", PROMPTS)
    file = {"path": "prompts.jsonl", "origin": "made here", "licence": "MIT"}
    settings = config(
        method,
        model=ModelSource(path=str(tmp_path / "base"), origin="made here", licence="MIT"),
        data={"files": [file], "held_out": 0.4},
        rewards=[{"rule": "brevity"}],
        steps=2,
    )
    final = method.run(settings, tmp_path, tmp_path / "run")
    assert (final / "model.safetensors").is_file()
    record = RunRecord.read(tmp_path / "run")
    assert [evaluation.metric for evaluation in record.evaluations] == ["reward"]
