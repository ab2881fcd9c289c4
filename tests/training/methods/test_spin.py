"""SPIN: real replies against the last iteration's own, an advancing opponent, an end at the fixed point."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.methods.preference_data import KIND, adapted, kind_pairs
from tests.training.tiny import tiny_model, tiny_prompts, tiny_tokenizer, write_tiny
from training.data.conversation import Conversation, Message
from training.errors import TrainingError
from training.evaluate.metrics import share
from training.methods import spin
from training.methods.spin import SpinConfig, SpinIteration, run_spin, train_spin
from training.models import ModelSource
from training.provenance import RunRecord
from training.rl.rollout import SampleConfig, generate

TOKENIZER = tiny_tokenizer()


def config(**options: Any) -> SpinConfig:
    settings = {
        "name": "tiny",
        "model": {"path": "unused"},
        "data": {"starter": 1},
        "steps": 10,
        "batch_size": 16,
        "micro_batch": 16,
        "learning_rate": 3e-3,
        "log_every": 5,
        "checkpoint_every": 5,
        "beta": 0.5,
        "iterations": 2,
        "max_length": 128,
        "sample": {"max_new_tokens": 10},
        **options,
    }
    return SpinConfig.model_validate(settings)


def demonstrations(count: int, seed: int = 0) -> list[Conversation]:
    """A kind reply to each prompt."""
    return [
        Conversation((*pair.prompt, Message("assistant", KIND[n % len(KIND)])))
        for n, pair in enumerate(kind_pairs(count, seed))
    ]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_people_s_replies_grow_likelier_with_every_iteration(lora: bool) -> None:
    model = adapted(TOKENIZER) if lora else tiny_model(TOKENIZER)
    settings = config(learning_rate=1e-2 if lora else 3e-3)
    result = train_spin(model, TOKENIZER, settings, demonstrations(48), held_out=demonstrations(24, 1))
    assert [iteration.number for iteration in result.iterations] == [0, 1]
    likelihoods = [i.data_logprob.value for i in result.iterations if i.data_logprob is not None]
    assert likelihoods[1] > likelihoods[0]
    assert not result.converged


def test_the_opponent_is_the_policy_after_the_iteration_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each iteration begins at a loss of log 2: policy and opponent are the same model then."""
    opponents: list[dict[str, torch.Tensor]] = []

    def watched(model: Any, *arguments: Any, **named: Any) -> Any:
        opponents.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return generate(model, *arguments, **named)

    monkeypatch.setattr(spin, "generate", watched)
    model = tiny_model(TOKENIZER)
    first = copy.deepcopy(dict(model.named_parameters()))
    settings = config(log_every=1, checkpoint_every=1, steps=3, iterations=3)
    result = train_spin(model, TOKENIZER, settings, demonstrations(32))
    assert len(opponents) == 3
    assert all(torch.equal(opponents[0][name], first[name]) for name in first)
    for before, after in pairwise(opponents):
        assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])
    starts = [record["loss"] for record in result.history if record["step"] == 1]
    assert starts == [pytest.approx(math.log(2), abs=1e-4)] * 3


def test_it_stops_where_its_own_replies_cannot_be_told_from_people_s() -> None:
    """The demonstrations are the model's own replies: it stands at the fixed point already."""
    model = tiny_model(TOKENIZER)
    prompts = tiny_prompts() * 12
    sample = SampleConfig(max_new_tokens=10)

    def own(seed: int) -> list[Conversation]:
        texts = generate(model, TOKENIZER, prompts, sample, seed).texts
        return [
            Conversation((*prompt, Message("assistant", text.strip())))
            for prompt, text in zip(prompts, texts, strict=True)
            if text.strip()
        ]

    settings = config(iterations=4, steps=2, learning_rate=1e-4, log_every=1, checkpoint_every=1)
    result = train_spin(model, TOKENIZER, settings, own(1), held_out=own(2))
    assert result.converged and len(result.iterations) == 1
    assert result.iterations[0].told_apart is not None
    assert result.iterations[0].told_apart.high > 0.5


def test_the_fixed_point_is_an_interval_that_reaches_one_half() -> None:
    def after(right: int, wrong: int) -> bool:
        apart = share([True] * right + [False] * wrong)
        return SpinIteration(0, 0.5, 0, apart, None).at_fixed_point

    assert after(52, 48) and after(40, 60)
    assert not after(70, 30)
    assert not SpinIteration(0, 0.5, 0, None, None).at_fixed_point


class Interrupted(Exception):
    pass


def test_a_run_goes_on_after_an_interruption_as_if_there_had_been_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path / "base")
    settings = config(
        model=ModelSource(path=str(tmp_path / "base"), origin="made here", licence="MIT"),
        data={"starter": 40, "held_out": 0.2},
        steps=4,
        log_every=1,
        checkpoint_every=2,
        stop_at_fixed_point=False,
    )
    whole = run_spin(settings, tmp_path, tmp_path / "whole")
    original, calls = spin.PairTrainer.compute_loss, [0]

    def dies(self: Any, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4 + 3:  # in the second iteration, after its first checkpoint
            raise Interrupted
        return original(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(spin.PairTrainer, "compute_loss", dies)
        run_spin(settings, tmp_path, tmp_path / "cut")
    resumed = run_spin(settings, tmp_path, tmp_path / "cut")
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    record = RunRecord.read(tmp_path / "cut")
    assert (record.method, record.data[0].path) == ("spin", "training/data/starter")


def test_demonstrations_that_leave_no_room_are_an_error() -> None:
    with pytest.raises(TrainingError, match="no demonstration fits"):
        train_spin(tiny_model(TOKENIZER), TOKENIZER, config(max_length=20), demonstrations(4))
