"""PPO on a tiny transformer: it learns, its invariants hold, and a killed run goes on bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.training.tiny import tiny_model, tiny_prompts, tiny_tokenizer, write_tiny
from training.data.conversation import Conversation, Message
from training.data.preferences import Prompt
from training.data.render import render
from training.errors import TrainingError
from training.methods.ppo import PpoResult, run_ppo, train_ppo
from training.methods.ppo_config import PpoConfig, PretrainingMix
from training.models import LoraConfig, attach_lora
from training.optimization import OptimizerConfig
from training.rl.actor_critic import ActorCritic
from training.rl.experience import prompts_of_step
from training.rl.kl import KlConfig
from training.rl.replies import length_buckets, reply_batch, reply_logprobs
from training.rl.rollout import generate
from training.rl.sampling import SampleConfig
from training.run_directory import RunDirectory


def shortness(prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
    return torch.tensor([-len(reply) / 10 for reply in replies])


def config(**changes: Any) -> PpoConfig:
    settings: dict[str, Any] = {
        "name": "tiny",
        "steps": 3,
        "rollouts": 16,
        "sample": SampleConfig(max_new_tokens=8),
        "epochs": 2,
        "minibatches": 2,
        "kl": KlConfig(coef=0.01),
        "optimizer": OptimizerConfig(learning_rate=3e-3, weight_decay=0.0),
    }
    return PpoConfig(**settings | changes)


def start(seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    tokenizer = tiny_tokenizer()
    return tiny_model(tokenizer, seed), tokenizer


def train(settings: PpoConfig, model: Any = None, **options: Any) -> PpoResult:
    fresh, tokenizer = start()
    return train_ppo(model or fresh, tokenizer, settings, tiny_prompts(), shortness, **options)


def without_clock(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    clock = ("collect_s", "update_s", "tokens_per_s")
    # nan is not equal to itself: compare as text.
    return [{k: str(v) for k, v in record.items() if k not in clock} for record in history]  # type: ignore[misc]


def test_it_learns_to_reply_shortly() -> None:
    history = train(config(steps=24, rollouts=32, epochs=4)).history
    assert history[0]["reward"] < -0.8
    assert history[-1]["reward"] > -0.3
    assert history[-1]["length"] < 4
    assert history[-1]["kl"] > 0.5


def test_the_kl_coefficient_holds_it_back() -> None:
    far, near = (
        train(config(steps=12, rollouts=32, kl=KlConfig(coef=coef))).history[-1] for coef in (0.0, 1.0)
    )
    assert far["reward"] > near["reward"]
    assert far["kl"] > 2 * near["kl"]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("value", ["shared", "separate"])
def test_the_first_ratio_is_one(temperature: float, value: str) -> None:
    sample = SampleConfig(max_new_tokens=8, temperature=temperature)
    for record in train(config(sample=sample, value=value)).history:
        assert record["first_ratio_error"] < 1e-4
        assert record["ratio_max"] > 1.01


def test_the_first_ratio_is_one_in_bfloat16() -> None:
    for record in train(config(precision="bf16")).history:
        assert record["first_ratio_error"] < 1e-4


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_every_parameter_moves(value: str) -> None:
    model, _ = start()
    actor = ActorCritic(model, value)  # type: ignore[arg-type]
    before = {name: p.detach().clone() for name, p in actor.named_parameters()}
    result = train(config(value=value, value_clip=None), model)
    for name, parameter in result.actor.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_micro_batches_add_up_to_the_minibatch() -> None:
    whole, cut = (train(config(steps=1, micro_batch_tokens=budget)) for budget in (100_000, 30))
    for (name, a), b in zip(whole.model.named_parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3, msg=name)
    assert whole.history[0]["grad_norm"] == pytest.approx(cut.history[0]["grad_norm"], rel=1e-3)


def test_logprobs_do_not_depend_on_batch_or_padding() -> None:
    model, tokenizer = start()
    rollouts = generate(model, tokenizer, tiny_prompts(), SampleConfig(max_new_tokens=8), 0)
    together = reply_logprobs(model, rollouts, 1.0, token_budget=100_000)
    alone = reply_logprobs(model, rollouts, 1.0, token_budget=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together, rollouts.logprobs_BT, atol=1e-5, rtol=1e-4)
    assert sorted(row for group in length_buckets(rollouts, range(8), 60) for row in group) == list(range(8))
    batch = reply_batch(rollouts, [5, 2], torch.device("cpu"))
    assert batch.targets_N.tolist() == rollouts.reply_ids(5) + rollouts.reply_ids(2)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Also with what a checkpoint must hold beside the weights: adapted coefficient, moving reference."""
    settings = config(steps=5, checkpoint_every=2, reference_every=2, kl=KlConfig(coef=0.1, target=0.01))
    whole = train(settings, run=tmp_path / "whole")
    train(settings, run=tmp_path / "cut", stop_after=3)
    # As kill -9 would: the last checkpoint is step 2's, what was logged after it is to be forgotten.
    torch.manual_seed(99)
    run = RunDirectory(tmp_path / "cut")
    latest = run.latest()
    assert latest is not None
    assert latest.name == "00000003"
    for file in latest.iterdir():
        file.unlink()
    latest.rmdir()
    resumed = train(settings, run=run)
    assert [record["step"] for record in resumed.history] == [1, 2, 3, 4, 5]
    assert without_clock(resumed.history) == without_clock(whole.history)
    for a, b in zip(whole.actor.parameters(), resumed.actor.parameters(), strict=True):
        assert torch.equal(a, b)


def test_lora_trains_the_adapter_alone_against_its_own_base() -> None:
    model, _ = start()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapted = attach_lora(model, LoraConfig(rank=4, alpha=8), 0)
    result = train(config(steps=8, rollouts=32, epochs=4), adapted)
    assert result.history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert result.history[-1]["kl"] > 0.01
    plain = adapted.unload()  # type: ignore[operator]  # a PeftModel
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, base[name]), name


def test_the_reference_follows_where_it_is_told_to() -> None:
    settings = config(steps=5, reference_every=2)
    kl = [record["kl"] for record in train(settings).history]
    assert kl[2::2] == pytest.approx([0, 0], abs=1e-4)
    assert abs(kl[1]) > 1e-3
    assert abs(kl[3]) > 1e-3


def test_target_kl_ends_the_epochs() -> None:
    record = train(config(steps=1, epochs=8, target_kl=1e-4)).history[0]
    assert record["early_stop"] == 1
    assert record["updates"] < 16


def test_unfinished_replies_pay_and_rewards_are_clipped() -> None:
    def value_target(**changes: Any) -> float:
        result = train(config(steps=1, epochs=1, minibatches=1, kl=KlConfig(coef=0), **changes))
        return result.history[0]["value_loss"]

    # Values begin at 0, so the value loss is ½ R², and at λ = 1 every R is the reply's score.
    plain = value_target(lam=1.0)
    assert value_target(lam=1.0, eos_penalty=5.0) > 4 * plain
    assert value_target(lam=1.0, reward_clip=0.1) == pytest.approx(0.005)


def test_pretraining_keeps_what_it_is_given() -> None:
    _, tokenizer = start()
    words = Conversation((Message("user", "Who is it?"), Message("assistant", "It is Anna.")))
    examples = [render(words, tokenizer)] * 8
    losses = []
    for coef in (None, 5.0):
        mix = None if coef is None else PretrainingMix(coef=coef, rows=1, row_length=64)
        result = train(config(steps=8, pretraining=mix), pretraining=examples if mix else ())
        ids = torch.tensor([examples[0].ids])
        losses.append(result.model(input_ids=ids, labels=ids).loss.item())
        assert ("pretraining_loss" in result.history[-1]) == (mix is not None)
    assert losses[1] < losses[0] - 1


def test_truncated_sampling_is_refused() -> None:
    for sample in ({"top_p": 0.9}, {"top_k": 5}, {"temperature": 0}):
        with pytest.raises(ValidationError, match="another distribution"):
            config(sample=SampleConfig(max_new_tokens=4, **sample))  # type: ignore[arg-type]


def test_a_reward_that_is_no_number_is_told_with_its_reply() -> None:
    model, tokenizer = start()
    with pytest.raises(TrainingError, match="the reward of reply 0 is nan"):
        train_ppo(model, tokenizer, config(), tiny_prompts(), lambda p, r: torch.full((len(r),), torch.nan))
    with pytest.raises(TrainingError, match="returned 1 scores for 16 replies"):
        train_ppo(model, tokenizer, config(), tiny_prompts(), lambda p, r: torch.zeros(1))


def test_prompts_are_gone_through_before_any_comes_again() -> None:
    prompts = tiny_prompts()
    drawn = [p for step in range(4) for p in prompts_of_step(prompts, 6, 0, step)]
    assert sorted(map(str, drawn[:8])) == sorted(map(str, drawn[8:16])) == sorted(map(str, prompts))
    assert drawn[:8] != drawn[8:16]


def test_the_command_trains_from_a_folder_to_a_folder(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "training/configs/ppo.yaml"
    settings = PpoConfig.load(
        shipped,
        [
            f"model={{path: {write_tiny(tmp_path / 'base')}, origin: made here, licence: MIT}}",
            "steps=2",
            "rollouts=8",
            "minibatches=2",
            "sample.max_new_tokens=8",
            "data.demo=40",
        ],
    )
    final = run_ppo(settings, tmp_path, tmp_path / "run")
    assert (final / "model.safetensors").is_file()
    assert (tmp_path / "run" / "record.json").is_file()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert settings == PpoConfig.model_validate(yaml.safe_load(settings.to_yaml()))
