"""Fine-tune one encoder as the multi-head safety classifier behind the gateway's guards.

A row teaches what its source knows and nothing else. For labels l with targets y in [0, 1], known or not
(k in {0, 1}), weight w, and tags t of the tokens with spans, a batch's loss is

    sum_bl(k w BCE(z, y)) / #rows with labels  +  c · mean CE(tags)

Rows of all tasks are mixed; batches hold texts of like length, at most `tokens_per_batch` with padding.
Left out: a second epoch (it gained nothing on sources that were not trained on) and class weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from training.config import Config
from training.data.entities import TAGS, bio
from training.data.safety import LABELS, Example, build
from training.errors import TrainingError
from training.methods.classifier_model import Encoded, GuardModel, encode, from_encoder, load_tokenizer
from training.optimization import OptimizerConfig, ScheduleConfig, build_optimizers, set_learning_rate
from training.run_directory import RunDirectory, restore


class ClassifierConfig(Config):
    """`encoder` is a folder, or `package:NAME` for one that an installed Python package carries."""

    name: str
    seed: int = 0
    encoder: str
    max_tokens: int = Field(default=128, ge=8, le=512)
    synthetic_scale: float = Field(default=1.0, gt=0)
    label_weights: dict[str, float] = {}
    tag_weight: float = Field(default=1.0, ge=0)
    tokens_per_batch: int = Field(default=2048, ge=128)
    rows_per_batch: int = Field(default=48, ge=1)
    epochs: int = Field(default=1, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, weight_decay=0.01, betas=(0.9, 0.98))
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=150, decay=0.9)
    precision: Literal["bf16", "fp32"] = "bf16"
    threads: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    log_every: int = Field(default=20, ge=1)


@dataclass(frozen=True, slots=True)
class Row:
    """An encoded example: targets and their known-mask over the labels, tags or None."""

    encoded: Encoded
    targets: tuple[float, ...]
    known: tuple[float, ...]
    tags: list[int] | None


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows padded to T tokens. `tags_BT` is -100 where there is nothing to learn."""

    ids_BT: Tensor
    types_BT: Tensor
    mask_BT: Tensor
    targets_BL: Tensor
    known_BL: Tensor
    tags_BT: Tensor


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


def to_rows(examples: Sequence[Example], encoded: Sequence[Encoded]) -> list[Row]:
    """Targets and masks in the order of LABELS, BIO tags from spans."""
    return [
        Row(
            e,
            tuple(x.labels.get(label, 0.0) for label in LABELS),
            tuple(float(label in x.labels) for label in LABELS),
            None if x.spans is None else bio(x.spans, e.offsets),
        )
        for x, e in zip(examples, encoded, strict=True)
    ]


def batches(rows: Sequence[Row], config: ClassifierConfig, epoch: int) -> list[list[Row]]:
    """The epoch's batches, a pure function of its arguments: shuffled, then grouped by like length."""
    rng = Random(f"{config.seed}/{epoch}")
    order = rng.sample(list(rows), len(rows))
    span = config.rows_per_batch * 64
    grouped: list[list[Row]] = []
    for first in range(0, len(order), span):
        group: list[Row] = []
        for row in sorted(order[first : first + span], key=lambda r: len(r.encoded.ids)):
            too_long = (len(group) + 1) * len(row.encoded.ids) > config.tokens_per_batch
            if group and (too_long or len(group) == config.rows_per_batch):
                grouped.append(group)
                group = []
            group.append(row)
        grouped.append(group)
    rng.shuffle(grouped)
    return grouped


def collate(rows: Sequence[Row]) -> Batch:
    """Pad to the longest row; padding is told by the mask, never by a token's id."""
    longest = max(len(r.encoded.ids) for r in rows)

    def padded(values: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*v, *[fill] * (longest - len(v))] for v in values])

    return Batch(
        padded([r.encoded.ids for r in rows], 0),
        padded([r.encoded.types for r in rows], 0),
        padded([[1] * len(r.encoded.ids) for r in rows], 0),
        torch.tensor([r.targets for r in rows]),
        torch.tensor([r.known for r in rows]),
        padded([r.tags if r.tags is not None else [-100] for r in rows], -100),
    )


def loss(model: GuardModel, batch: Batch, weights_L: Tensor, tag_weight: float, bf16: bool) -> tuple[Tensor, Tensor]:
    """The sequence part and the (weighted) tag part of the batch's loss; either may be zero."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        labels_BL, tags_BTK = model(batch.ids_BT, batch.types_BT, batch.mask_BT)
    each_BL = F.binary_cross_entropy_with_logits(labels_BL.float(), batch.targets_BL, reduction="none")
    labelled = batch.known_BL.any(dim=1).sum().clamp(min=1)
    sequence = (each_BL * batch.known_BL * weights_L).sum() / labelled
    tagged = (batch.tags_BT != -100).sum().clamp(min=1)
    total = F.cross_entropy(tags_BTK.float().flatten(0, 1), batch.tags_BT.flatten(), ignore_index=-100, reduction="sum")
    return sequence, tag_weight * total / tagged


def label_weights(config: ClassifierConfig) -> Tensor:
    """Loss weight per label; raises TrainingError for a label that does not exist."""
    unknown = config.label_weights.keys() - set(LABELS)
    if unknown:
        raise TrainingError(f"label_weights: unknown labels {sorted(unknown)}; there are {', '.join(LABELS)}")
    return torch.tensor([config.label_weights.get(label, 1.0) for label in LABELS])


def train(config: ClassifierConfig, data_root: Path, run_path: Path, stop_after: int | None = None) -> Path:
    """Run to the end, resuming what `run_path` holds; returns the folder of the finished model."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    run = RunDirectory(run_path)
    run.bind(config.model_dump(mode="json"))
    folder = encoder_folder(config.encoder)
    tokenizer = load_tokenizer(folder, config.max_tokens)
    examples = build(data_root, config.seed, config.synthetic_scale).train
    rows = to_rows(examples, encode(tokenizer, [x.text for x in examples]))
    schedule = [group for epoch in range(config.epochs) for group in batches(rows, config, epoch)]
    print(f"{len(rows)} examples, {sum(len(r.encoded.ids) for r in rows):,} tokens, {len(schedule)} steps")
    model = from_encoder(folder, len(LABELS), len(TAGS)).train()
    optimizers = build_optimizers(model, config.optimizer)
    place = run.latest()
    start = int(restore(place, model, optimizers)["step"]) if place is not None else 0
    end = len(schedule) if stop_after is None else min(len(schedule), start + stop_after)
    weights_L = label_weights(config)
    began, tokens, sums = time.perf_counter(), 0, torch.zeros(2)
    for step in range(start, end):
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout is the step's own, so a resumed run agrees
        batch = collate(schedule[step])
        parts = loss(model, batch, weights_L, config.tag_weight, config.precision == "bf16")
        sum(parts).backward()  # type: ignore[union-attr]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm).item()
        if not math.isfinite(norm):
            raise TrainingError(f"step {step + 1}: the gradient is not finite; lower the learning rate or use fp32")
        rate = config.optimizer.learning_rate * config.schedule.factor(step, len(schedule))
        set_learning_rate(optimizers, rate)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done, sums, tokens = step + 1, sums + torch.stack([p.detach() for p in parts]), tokens + int(batch.mask_BT.sum())
        if done % config.log_every == 0 or done == end:
            seconds = time.perf_counter() - began
            sequence, tag = (sums / (done % config.log_every or config.log_every)).tolist()
            record = {"step": done, "sequence_loss": sequence, "tag_loss": tag, "grad_norm": norm, "lr": rate, "tokens_per_s": round(tokens / seconds)}
            run.log(record)
            print(f"{done}/{len(schedule)} sequence {sequence:.3f} tags {tag:.3f} {tokens / seconds:.0f} tokens/s", flush=True)
            began, tokens, sums = time.perf_counter(), 0, torch.zeros(2)
        if done % config.checkpoint_every == 0 or done == end:
            run.save(done, model, optimizers, {})
    return write_model(run_path / "final", model, folder, config) if end == len(schedule) else run_path


def write_model(place: Path, model: GuardModel, encoder: Path, config: ClassifierConfig) -> Path:
    """Weights, the encoder's configuration and tokenizer, and the labels, as `from_checkpoint` reads them."""
    place.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}, place / "model.safetensors")
    model.bert.config.save_pretrained(place)
    tokenizer = load_tokenizer(encoder, config.max_tokens)
    tokenizer.no_truncation()
    tokenizer.save(str(place / "tokenizer.json"))
    about: Mapping[str, object] = {"labels": LABELS, "tags": TAGS, "max_tokens": config.max_tokens}
    (place / "classifier.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    return place


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="keel-train classifier", description="Fine-tune the safety classifier.")
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see training/configs")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KEEL_DATA", "../shared/data")))
    parser.add_argument("--run", type=Path, help="the run's directory (default: runs/NAME)")
    parser.add_argument("--stop-after", type=int, help="end after so many steps; the same command goes on later")
    arguments = parser.parse_args(argv)
    config = ClassifierConfig.load(arguments.config)
    final = train(config, arguments.data, arguments.run or Path("runs") / config.name, arguments.stop_after)
    print(f"finished: {final}")
    return 0
