"""SFT or DPO, ours and TRL called directly, in turns of one process: same environment, same arguments.

    python -m training.bench.own_beside_trl JOB.json

A turn loads the model, trains for the job's steps, and counts everything after loading: rendering, the
trainer's making, its steps.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl.trainer.dpo_config import DPOConfig as TrlDpoConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig as TrlSftConfig
from trl.trainer.sft_trainer import SFTTrainer

from training.demo import demo_demonstrations, demo_preferences
from training.methods.dpo import DpoConfig, train_dpo
from training.methods.sft import SftConfig, train_sft
from training.models import ModelSource, load_policy

STEPS, BATCH, ROWS, LENGTH, RATE = 12, 16, 256, 128, 1e-5


def options(model: str) -> dict[str, Any]:
    return {
        "name": "bench",
        "model": {"path": model},
        "data": {"demo": 1},
        "steps": STEPS,
        "batch_size": BATCH,
        "micro_batch": BATCH,
        "learning_rate": RATE,
        "max_length": LENGTH,
        "log_every": STEPS,
        "checkpoint_every": STEPS,
    }


def arguments(scratch: str, device: str) -> dict[str, Any]:
    return {
        "output_dir": scratch,
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "max_length": LENGTH,
        "logging_steps": STEPS,
        "save_strategy": "no",
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "seed": 0,
    }


def own_sft(model: Any, tokenizer: Any, job: Mapping[str, str]) -> None:
    config = SftConfig.model_validate(options(job["model"]) | {"data": {}})
    train_sft(model, tokenizer, config, demo_demonstrations(ROWS, 0))


def own_dpo(model: Any, tokenizer: Any, job: Mapping[str, str]) -> None:
    config = DpoConfig.model_validate(options(job["model"]))
    train_dpo(model, tokenizer, config, demo_preferences(ROWS, 0))


def trl_sft(model: Any, tokenizer: Any, job: Mapping[str, str]) -> None:
    rows = [
        {"prompt": c.as_dicts()[:-1], "completion": c.as_dicts()[-1:]} for c in demo_demonstrations(ROWS, 0)
    ]
    with TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=TrlSftConfig(**arguments(scratch, job["device"])),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def trl_dpo(model: Any, tokenizer: Any, job: Mapping[str, str]) -> None:
    rows = [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in p.prompt],
            "chosen": [{"role": "assistant", "content": p.chosen}],
            "rejected": [{"role": "assistant", "content": p.rejected}],
        }
        for p in demo_preferences(ROWS, 0)
    ]
    with TemporaryDirectory() as scratch:
        trainer = DPOTrainer(
            model=model,
            args=TrlDpoConfig(**arguments(scratch, job["device"]), beta=0.1),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


_RUNS: dict[str, Callable[[Any, Any, Mapping[str, str]], None]] = {
    "own sft": own_sft,
    "trl sft": trl_sft,
    "own dpo": own_dpo,
    "trl dpo": trl_dpo,
}


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    print(json.dumps({"ready": True}), flush=True)
    while sys.stdin.readline():
        turn = {}
        for name in (f"own {job['method']}", f"trl {job['method']}"):
            model, tokenizer = load_policy(ModelSource(path=job["model"]))
            wall, cpu = time.perf_counter(), time.process_time()
            _RUNS[name](model, tokenizer, job)
            turn[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        print(json.dumps(turn), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
