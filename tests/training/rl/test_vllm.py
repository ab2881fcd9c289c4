"""Rollouts through a real vLLM: they are of the policy's weights, which are pushed, checked and stamped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.training.tiny import tiny_model, tiny_prompts, tiny_tokenizer
from training.data.preferences import Prompt
from training.errors import TrainingError
from training.methods.ppo import train_ppo
from training.methods.ppo_config import PpoConfig
from training.optimization import OptimizerConfig
from training.rl.replies import reply_logprobs
from training.rl.sampling import SampleConfig
from training.rl.vllm import VllmRollouts, VllmSampler, check_weights, served_weights, vllm_sampler

SAMPLE = SampleConfig(max_new_tokens=12, temperature=0.8)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def policy(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Embeddings four times the usual: what is sampled depends on the weights. vLLM's heads are 32 wide."""
    model = tiny_model(tokenizer, width=64)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def sampler(policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[VllmSampler]:
    with vllm_sampler(VllmRollouts(), policy, tokenizer, SAMPLE) as sampler:
        sampler([*tiny_prompts()], 0, 0)
        yield sampler


@pytest.mark.vllm
@pytest.mark.timeout(900)  # the server's start, on a busy machine
def test_replies_are_the_policys_and_end_as_in_process(
    sampler: VllmSampler, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rollouts = sampler(tiny_prompts() * 3, 1, 0)
    assert rollouts.weight_version == 0
    torch.testing.assert_close(rollouts.logprobs_BT, reply_logprobs(policy, rollouts, SAMPLE.temperature))
    # vLLM's own log-probabilities, at the temperature that it sampled at, agree.
    assert sampler.log_probability_gap < 1e-3
    assert len({rollouts.texts[row] for row in (0, 8, 16)}) > 1
    for row, ended in enumerate(rollouts.ended_B.tolist()):
        reply = rollouts.reply_ids(row)
        assert ended == (reply[-1] == tokenizer.eos_token_id)
        assert ended or len(reply) == SAMPLE.max_new_tokens
    assert sampler(tiny_prompts() * 3, 1, 0).texts == rollouts.texts


@pytest.mark.vllm
def test_new_weights_are_pushed_and_answered_from(sampler: VllmSampler, policy: LlamaForCausalLM) -> None:
    old = {name: p.detach().clone() for name, p in policy.named_parameters()}
    before = sampler(tiny_prompts(), 5, 0)
    try:
        with torch.no_grad():
            policy.model.embed_tokens.weight.mul_(0.5)  # tied: the unembedding as well
        # Without a push the server's replies give themselves away.
        with pytest.raises(TrainingError, match="answers from other weights"):
            sampler(tiny_prompts(), 5, 0)
        after = sampler(tiny_prompts(), 5, 1)
        assert after.weight_version == sampler.weight_version == 1
        assert sampler.log_probability_gap < 1e-3
        assert after.texts != before.texts
    finally:
        with torch.no_grad():
            for name, p in policy.named_parameters():
                p.copy_(old[name])
    assert sampler(tiny_prompts(), 5, 2).texts == before.texts


@pytest.mark.vllm
def test_weights_that_would_break_the_server_never_reach_it(
    sampler: VllmSampler, policy: LlamaForCausalLM
) -> None:
    weight = policy.model.layers[1].mlp.up_proj.weight
    kept = weight.detach().clone()
    before = sampler(tiny_prompts(), 6, 2).texts
    with torch.no_grad():
        weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"up_proj.weight is not finite"):
        sampler(tiny_prompts(), 6, 3)
    with torch.no_grad():
        weight.copy_(kept)
    assert sampler(tiny_prompts(), 6, 2).texts == before


@pytest.mark.vllm
def test_ppo_trains_through_a_server_at_an_address(
    sampler: VllmSampler, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sampler.server is not None
    monkeypatch.setenv("ROLLOUTS_KEY", sampler.server.api_key)
    there = VllmRollouts(
        url=sampler.server.url + "/v1", weights=str(sampler.folder), api_key_env="ROLLOUTS_KEY"
    )
    config = PpoConfig(
        name="vllm",
        steps=3,
        rollouts=8,
        minibatches=2,
        sample=SAMPLE,
        vllm=there,
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0),
    )

    def shortness(prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
        return torch.tensor([-float(len(reply)) for reply in replies])

    model = tiny_model(tokenizer, width=64)
    history = train_ppo(model, tokenizer, config, tiny_prompts(), shortness).history
    assert [record["weight_version"] for record in history] == [0, 1, 2]
    assert all(record["first_ratio_error"] < 1e-4 for record in history)
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert history[-1]["kl"] != history[0]["kl"]


@pytest.mark.vllm
def test_the_server_goes_when_the_trainer_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from training.rl.vllm_server import ManagedServer\n"
        "server = ManagedServer(Path('nowhere'), (), Path(sys.argv[1]))\n"
        "print(server.process.pid, flush=True)\n"
        "server.process.wait()\n"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    child = psutil.Process(int(trainer.stdout.readline()))
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()
    deadline = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not [p for p in psutil.process_iter() if _line_of(p).count("nowhere")]


def test_weights_are_compared_by_name_shape_and_type(
    policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    weights = served_weights(policy, "float32")
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    place = tmp_path / "model.safetensors"
    save_file(weights, place)
    check_weights(place, weights)
    norm = "model.norm.weight"
    for changed, problem in (
        ({k: v for k, v in weights.items() if k != norm}, "other names than the server's"),
        (weights | {norm: weights[norm][:-1]}, r"model.norm.weight is \(\(63,\), 'F32'\)"),
        (weights | {norm: weights[norm].bfloat16()}, "'BF16'"),
        (weights | {norm: weights[norm] * torch.inf}, "is not finite"),
    ):
        with pytest.raises(TrainingError, match=problem):
            check_weights(place, changed)


def _line_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
