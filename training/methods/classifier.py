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
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from training.data.entities import TAGS, bio
from training.data.reviews import read_reviews
from training.data.safety import build
from training.data.safety_example import LABELS, Example
from training.errors import TrainingError
from training.methods.classifier_config import ClassifierConfig, encoder_folder
from training.methods.classifier_finish import finish, publish_run
from training.methods.classifier_model import Encoded, GuardModel, encode, from_encoder, load_tokenizer
from training.optimization import build_optimizers, set_learning_rate
from training.run_directory import RunDirectory, restore


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


def loss(
    model: GuardModel, batch: Batch, weights_L: Tensor, tag_weight: float, bf16: bool
) -> tuple[Tensor, Tensor]:
    """The sequence part and the (weighted) tag part of the batch's loss; either may be zero."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        labels_BL, tags_BTK = model(batch.ids_BT, batch.types_BT, batch.mask_BT)
    each_BL = F.binary_cross_entropy_with_logits(labels_BL.float(), batch.targets_BL, reduction="none")
    labelled = batch.known_BL.any(dim=1).sum().clamp(min=1)
    sequence = (each_BL * batch.known_BL * weights_L).sum() / labelled
    tagged = (batch.tags_BT != -100).sum().clamp(min=1)
    total = F.cross_entropy(
        tags_BTK.float().flatten(0, 1), batch.tags_BT.flatten(), ignore_index=-100, reduction="sum"
    )
    return sequence, tag_weight * total / tagged


def label_weights(config: ClassifierConfig) -> Tensor:
    """Loss weight per label; raises TrainingError for a label that does not exist."""
    unknown = config.label_weights.keys() - set(LABELS)
    if unknown:
        raise TrainingError(f"label_weights: unknown labels {sorted(unknown)}; there are {', '.join(LABELS)}")
    return torch.tensor([config.label_weights.get(label, 1.0) for label in LABELS])


class Learner:
    """The model, its optimizers and one optimizer step; knows nothing of files or data sources."""

    def __init__(self, model: GuardModel, config: ClassifierConfig) -> None:
        self.model = model.train()
        self.optimizers = build_optimizers(model, config.optimizer)
        self._config = config
        self._weights_L = label_weights(config)

    def step(self, batch: Batch, number: int, learning_rate: float) -> tuple[Tensor, float]:
        """One step; returns the loss's two parts `[2]` and the gradient's norm before clipping.

        Dropout is drawn from the step's own seed, so that a resumed run is the same run.
        """
        config = self._config
        torch.manual_seed(config.seed * 1_000_003 + number)
        parts = loss(self.model, batch, self._weights_L, config.tag_weight, config.precision == "bf16")
        (parts[0] + parts[1]).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm).item()
        if not math.isfinite(norm):
            raise TrainingError(
                f"step {number + 1}: the gradient is not finite; lower the learning rate or use fp32"
            )
        set_learning_rate(self.optimizers, learning_rate)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return torch.stack([part.detach() for part in parts]), norm


def plan(config: ClassifierConfig, rows: Sequence[Row]) -> list[list[Row]]:
    """All batches of the run, in order."""
    every = [group for epoch in range(config.epochs) for group in batches(rows, config, epoch)]
    return every[: config.max_steps]


def reviewed(config: ClassifierConfig) -> list[Example]:
    """What people decided, as often as it is to be seen. Raises DataError for a file that is wrong."""
    if not config.reviews:
        return []
    found = read_reviews(config.reviews)
    upheld, overturned = found.counts
    told = f"reviews: {len(found.examples)} texts, {upheld} labels upheld, {overturned} overturned"
    print(f"{told}, {found.unknown} rows of other labels left out; each {config.review_copies} times")
    return found.examples * config.review_copies


def _digests(files: Sequence[Path]) -> dict[str, list[str]]:
    """A run goes on only with the reviews that it began with."""
    return {"reviews_sha256": [sha256(file.read_bytes()).hexdigest() for file in files]} if files else {}


def train(config: ClassifierConfig, data_root: Path, run_path: Path, stop_after: int | None = None) -> bool:
    """Run to the end, resuming what `run_path` holds; true when the finished model is in `run_path/model`."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    run = RunDirectory(run_path)
    run.bind(config.model_dump(mode="json") | _digests(config.reviews))
    encoder = encoder_folder(config.encoder)
    tokenizer = load_tokenizer(encoder, config.max_tokens)
    examples = [*build(data_root, config.seed, config.synthetic_scale).train, *reviewed(config)]
    schedule = plan(config, to_rows(examples, encode(tokenizer, [x.text for x in examples])))
    learner = Learner(from_encoder(encoder, len(LABELS), len(TAGS)), config)
    place = run.latest()
    start = int(restore(place, learner.model, learner.optimizers)["step"]) if place is not None else 0
    end = len(schedule) if stop_after is None else min(len(schedule), start + stop_after)
    print(f"{len(examples)} examples, steps {start + 1} to {end} of {len(schedule)}")
    began, tokens, sums, count = time.perf_counter(), 0, torch.zeros(2), 0
    for step in range(start, end):
        batch = collate(schedule[step])
        rate = config.optimizer.learning_rate * config.schedule.factor(step, len(schedule))
        parts, norm = learner.step(batch, step, rate)
        sums, tokens, count, done = sums + parts, tokens + int(batch.mask_BT.sum()), count + 1, step + 1
        if done % config.log_every == 0 or done == end:
            sequence, tags = (sums / count).tolist()
            speed = round(tokens / (time.perf_counter() - began))
            record = {"sequence_loss": sequence, "tag_loss": tags, "grad_norm": norm, "lr": rate}
            run.log({"step": done, **record, "tokens_per_s": speed})
            print(
                f"{done}/{len(schedule)} labels {sequence:.3f} tags {tags:.3f} {speed} tokens/s", flush=True
            )
            began, tokens, sums, count = time.perf_counter(), 0, torch.zeros(2), 0
        if done % config.checkpoint_every == 0 or done == end:
            run.save(done, learner.model, learner.optimizers, {})
    if end == len(schedule):
        write_model(run_path / "model", learner.model, encoder, config)
    return end == len(schedule)


def write_model(place: Path, model: GuardModel, encoder: Path, config: ClassifierConfig) -> None:
    """Weights, the encoder's configuration and tokenizer, and the labels, as `training.export` reads them."""
    place.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, place / "model.safetensors")
    model.bert.config.save_pretrained(place)
    tokenizer = load_tokenizer(encoder, config.max_tokens)
    tokenizer.no_truncation()
    tokenizer.save(str(place / "tokenizer.json"))
    about = {"labels": LABELS, "tags": TAGS, "max_tokens": config.max_tokens}
    (place / "classifier.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="keel-train classifier", description="Fine-tune the safety classifier."
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see training/configs")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KEEL_DATA", "../shared/data")))
    parser.add_argument("--run", type=Path, help="the run's directory (default: runs/NAME)")
    parser.add_argument(
        "--stop-after", type=int, help="end after so many steps; the same command goes on later"
    )
    parser.add_argument(
        "--publish",
        type=Path,
        metavar="REGISTRY",
        help="place the evaluated run into this folder, and no more",
    )
    parser.add_argument(
        "--reviews",
        type=Path,
        action="append",
        metavar="FILE",
        help="what `keel feedback export --reviews` wrote; in place of the configuration's, may be repeated",
    )
    arguments = parser.parse_args(argv)
    config = ClassifierConfig.load(arguments.config)
    if arguments.reviews:
        config = config.model_copy(update={"reviews": tuple(arguments.reviews)})
    run = arguments.run or Path("runs") / config.name
    if arguments.publish is not None:
        print(f"published: {publish_run(run, arguments.publish, config.name).ref}")
        return 0
    final = train(config, arguments.data, run, arguments.stop_after)
    if final:
        finish(config, arguments.data, run)
    print(f"finished: {final}")
    return 0
