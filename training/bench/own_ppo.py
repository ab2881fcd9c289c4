"""Keel's PPO under measurement: the same job file, the same lines as `peer_trl.py`."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from training.chat_model import read_model, read_tokenizer
from training.data.preferences import Prompt, as_prompt
from training.methods.ppo import train_ppo
from training.methods.ppo_config import PpoConfig
from training.optimization import OptimizerConfig
from training.reward_model import RewardModel
from training.rl.sampling import SampleConfig


def say(**content: Any) -> None:
    print(json.dumps(content), flush=True)


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    tokenizer, model = read_tokenizer(Path(job["model"])), read_model(Path(job["model"]))
    reward = RewardModel.load(Path(job["reward"]))
    for part in (model, reward.model):
        part.to(job["device"])
    prompts: list[Prompt] = [as_prompt(text) for text in job["texts"]]
    config = PpoConfig(
        name="bench",
        steps=job["steps"],
        rollouts=job["rollouts"],
        sample=SampleConfig(max_new_tokens=job["max_new_tokens"]),
        epochs=job["epochs"],
        minibatches=job["minibatches"],
        value=job["value"],
        precision=job["precision"],
        optimizer=OptimizerConfig(
            learning_rate=job["learning_rate"], weight_decay=0.0, betas=(0.9, 0.999), clip_norm=1e9
        ),
        micro_batch_tokens=job.get("micro_batch_tokens", 2048),
    )
    clock = [0.0, 0.0]

    def begin() -> None:
        clock[:] = time.perf_counter(), time.process_time()

    def after(record: dict[str, float]) -> None:
        say(
            wall_s=time.perf_counter() - clock[0],
            cpu_s=time.process_time() - clock[1],
            tokens=int(record["sampled_tokens"]),
            collect_s=record["collect_s"],
            update_s=record["update_s"],
            peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
        if not sys.stdin.readline():
            sys.exit(0)
        begin()

    say(ready=True)
    sys.stdin.readline()
    begin()
    train_ppo(model, tokenizer, config, prompts, reward, on_step=after)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
