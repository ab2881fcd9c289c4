"""What a run of the safety classifier's training takes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field

from training.config import Config
from training.errors import TrainingError
from training.optimization import OptimizerConfig, ScheduleConfig


class ClassifierConfig(Config):
    """`encoder` is a folder, or `package:NAME` for one that an installed Python package carries.

    `reviews` are files of `keel feedback export --reviews`; each of their rows is seen `review_copies` times
    in an epoch, since they are few beside the others.
    """

    name: str
    seed: int = 0
    encoder: str
    max_tokens: int = Field(default=128, ge=8, le=512)
    synthetic_scale: float = Field(default=1.0, gt=0)
    reviews: tuple[Path, ...] = ()
    review_copies: int = Field(default=10, ge=1, le=1000)
    label_weights: dict[str, float] = Field(default_factory=dict)
    tag_weight: float = Field(default=1.0, ge=0)
    tokens_per_batch: int = Field(default=2048, ge=128)
    rows_per_batch: int = Field(default=48, ge=1)
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, weight_decay=0.01, betas=(0.9, 0.98))
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=150, decay=0.9)
    precision: Literal["bf16", "fp32"] = "bf16"
    threads: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    log_every: int = Field(default=20, ge=1)


def encoder_folder(name: str) -> Path:
    """Where the encoder is; raises TrainingError when it is not there."""
    kind, _, package = name.partition(":")
    if kind == "package":
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise TrainingError(f"encoder {name}: the Python package {package} is not installed")
        folder = Path(spec.origin).parent / "model"
    else:
        folder = Path(name)
    if not (folder / "model.safetensors").is_file():
        raise TrainingError(f"encoder {name}: {folder} holds no model.safetensors")
    return folder
