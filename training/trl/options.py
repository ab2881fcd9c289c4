"""The options that every method on a transformers trainer has, and their translation into its arguments."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from transformers import TrainingArguments

from training.config import Config
from training.data.epochs import Curriculum
from training.errors import ConfigError
from training.reporting import Destination, check_destinations
from training.trl.safety import SafetyConfig

A = TypeVar("A", bound=TrainingArguments)


class TrainingOptions(Config):
    """Give `steps` or `epochs`. Batches are counted in examples (packed: rows) per optimizer step.

    `batch_size` is over all processes, `micro_batch` what one process computes at once; the rest is
    accumulated. `warmup` is in steps; the schedule then falls to zero (`linear`, `cosine`) or not.
    `checkpoint_every`, in steps, is a multiple of `log_every`, so that a resumed run's means are over the
    same steps as an uninterrupted one's.
    """

    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, ge=1)
    micro_batch: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    max_length: int = Field(default=512, gt=1)
    curriculum: Curriculum = "shuffled"
    checkpoint_every: int = Field(default=100, ge=1)
    keep_checkpoints: int = Field(default=2, ge=2)
    log_every: int = Field(default=10, ge=1)
    evaluate_every: int | None = Field(default=None, ge=1)
    safety: SafetyConfig | None = None
    report_to: tuple[Destination, ...] = ()
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> TrainingOptions:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.batch_size % self.micro_batch:
            raise ValueError("batch_size must be a multiple of micro_batch")
        if self.checkpoint_every % self.log_every:
            raise ValueError("checkpoint_every must be a multiple of log_every")
        return self


def trainer_arguments(
    options: TrainingOptions, run_path: Path | None, cls: type[A], *, seed: int, **extra: Any
) -> A:
    """`options` as `cls`; `extra` are the method's own arguments. Without `run_path` nothing is written.

    Also sets the number of threads. Raises ConfigError where the batch doesn't divide over the processes,
    and TrainingError where a report's package is missing.
    """
    check_destinations(options.report_to)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # what accelerate launch and torchrun set
    if options.batch_size % (options.micro_batch * processes):
        raise ConfigError(
            f"batch_size {options.batch_size} is no multiple of micro_batch {options.micro_batch} times "
            f"{processes} processes; change one of them"
        )
    settings = {**_schedule(options), **_batches(options, processes), **_outputs(options, run_path)}
    return cls(**{**settings, "seed": seed, "data_seed": seed, **extra})


def _schedule(options: TrainingOptions) -> dict[str, Any]:
    """How long, how fast, how exactly."""
    stepwise = {"max_steps": options.steps} if options.steps is not None else {}
    return {
        **stepwise,
        "num_train_epochs": options.epochs if options.epochs is not None else 1,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": options.schedule if options.warmup == 0 else _WARM[options.schedule],
        "warmup_steps": options.warmup,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.clip_norm,
        "bf16": options.precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,  # `load_policy` has switched it on where it was asked for
    }


def _batches(options: TrainingOptions, processes: int) -> dict[str, Any]:
    """What a step sees, and in which order."""
    return {
        "per_device_train_batch_size": options.micro_batch,
        "per_device_eval_batch_size": options.micro_batch,
        "gradient_accumulation_steps": options.batch_size // (options.micro_batch * processes),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "train_sampling_strategy": "random" if options.curriculum == "shuffled" else "sequential",
    }


def _outputs(options: TrainingOptions, run_path: Path | None) -> dict[str, Any]:
    """What is written when, and where."""
    writes = run_path is not None
    return {
        "output_dir": str(run_path / "steps") if run_path is not None else tempfile.gettempdir(),
        "logging_strategy": "steps",
        "logging_steps": options.log_every,
        "logging_nan_inf_filter": False,  # it would replace a NaN by the mean of what came before
        "eval_strategy": "steps" if writes and options.evaluate_every is not None else "no",
        "eval_steps": options.evaluate_every,
        "save_strategy": "steps" if writes else "no",
        "save_steps": options.checkpoint_every,
        "save_total_limit": options.keep_checkpoints,
        "report_to": list(options.report_to) if writes else "none",
        "disable_tqdm": True,
    }


_WARM = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
