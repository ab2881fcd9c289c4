"""TRL's PPO under measurement. Runs in TRL's own environment and imports nothing of Keel's.

    python peer_trl.py JOB.json

Says one JSON line when it is ready and one for every PPO step, which it makes when it reads a line.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import torch
import trl.experimental.ppo.ppo_trainer as ppo_trainer  # type: ignore[import-not-found]  # not ours
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def say(**content: Any) -> None:
    print(json.dumps(content), flush=True)


class Turns(TrainerCallback):
    """Waits for its turn before every step but counts the step's time only."""

    def __init__(self) -> None:
        self.tokens = 0
        self.begin()

    def begin(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        say(ready=True)
        sys.stdin.readline()
        self.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        say(
            wall_s=time.perf_counter() - self.wall,
            cpu_s=time.process_time() - self.cpu,
            tokens=self.tokens,
            peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
        if not sys.stdin.readline():
            sys.exit(0)
        self.begin()


def count_tokens(turns: Turns, eos: int) -> None:
    """Have the trainer's own sampling tell how many tokens its replies have, their end of text included."""
    inner = ppo_trainer.batch_generation

    def counted(model: Any, queries: Any, *args: Any, **kwargs: Any) -> Any:
        found = inner(model, queries, *args, **kwargs)
        replies_BT = found[0][:, queries.shape[1] :]
        ended_BT = (replies_BT == eos).cumsum(1)
        turns.tokens = int(((ended_BT - (replies_BT == eos).long()) == 0).sum())
        return found

    ppo_trainer.batch_generation = counted


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32) for _ in range(2)
    )
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(job["reward"], num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    config = PPOConfig(
        output_dir=job["scratch"],
        per_device_train_batch_size=job["rollouts"],
        gradient_accumulation_steps=1,
        num_mini_batches=job["minibatches"],
        num_ppo_epochs=job["epochs"],
        local_rollout_forward_batch_size=job["rollouts"],
        response_length=job["max_new_tokens"],
        temperature=1.0,
        stop_token="eos",  # noqa: S106
        total_episodes=job["rollouts"] * job["steps"],
        learning_rate=job["learning_rate"],
        kl_coef=0.05,
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        gamma=1.0,
        lam=0.95,
        num_sample_generations=0,
        bf16=job["precision"] == "bf16",
        fp16=False,
        use_cpu=job["device"] == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    turns = Turns()
    count_tokens(turns, int(tokenizer.eos_token_id))
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": job["prompts"]}),
        callbacks=[turns],
    )
    trainer.train()


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        main(json.load(file))
