"""`keel-train early-exit`: distil a published safety encoder into an exit after its lower layers.

The encoder scores texts (kept with its hidden states, so that a second try begins with training), the
network of `early_exit_model` learns the scores from the states, and per head the logit is chosen below which
the upper layers need not be run: on sources that nothing was trained on, in none of which more than `lost` of
what the encoder flags at the head's floor may lie below.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from policies.manifest import DataSource
from policies.registry import Registry, ResolvedCheckpoint
from training.config import Config
from training.data.early_exit import CHANGED, TRAINED_ON, build_texts
from training.errors import TrainingError
from training.evaluate.scorer import Scorer
from training.methods.classifier_finish import data_sources
from training.methods.early_exit_model import EarlyExit
from training.methods.early_exit_scores import REACH, Floats, Scored, score, tapped
from training.methods.early_exit_train import fit, known, logits
from training.provenance import RunRecord, code_revision
from training.publish import Check, Draft, publish

FEWEST = 200
"""Flagged texts that a source must have for its share of lost ones to count by itself."""
TEXTS_AT_ONCE = ("validation", "training")


class EarlyExitConfig(Config):
    """`encoder`: a checkpoint of the registry; `at`: the tensor of its graph from which the exit reads.

    `texts`: how many to learn from; `floors`: the encoder's score from which on a text counts as flagged, for
    its labels and for its entity types; `lost`: the share of flagged texts that may be given up. `margin`: by
    how many logits a head's limit lies below the one that `lost` gives, for attacks unlike those it knows.
    """

    name: str
    seed: int = 0
    encoder: str
    at: str
    texts: int = Field(default=45_000, ge=1)
    channels: int = Field(default=256, ge=1)
    epochs: int = Field(default=5, ge=1)
    rows_per_batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    positive_weight: float = Field(default=8.0, ge=1)
    floors: dict[str, float] = Field(default_factory=lambda: {"labels": 0.5, "names": 0.4})
    lost: float = Field(default=0.01, ge=0, lt=1)
    margin: dict[str, float] = Field(default_factory=dict)
    threads: int = Field(default=1, ge=1)


def scored(config: EarlyExitConfig, encoder: ResolvedCheckpoint, data_root: Path, run: Path) -> None:
    """Let the encoder read all texts, unless the run's directory has that already."""
    if all((run / name / "scored.npz").is_file() for name in TEXTS_AT_ONCE):
        return
    train, validation = build_texts(data_root, config.seed, config.texts)
    scorer = Scorer(encoder.path, tapped(encoder.path / "model.onnx", config.at), config.at)
    for name, texts in zip(TEXTS_AT_ONCE, (validation, train), strict=True):
        score(scorer, texts, run / name)


def halved(model: EarlyExit) -> dict[str, Tensor]:
    """What is published: 16 bits. The model is changed to have just these weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}


def sure(logits_NH: Floats, validation: Scored, floors_H: Sequence[float], lost: float) -> dict[str, float]:
    """Per head the highest logit below which no more than `lost` of the flagged texts lie: of all, of every
    source with FEWEST of them, and of the texts that were changed, if they have as many.

    A text that was changed counts with its source too. Raises TrainingError for a head that none has.
    """
    sources = np.array(validation.sources)
    named = np.array([source.removesuffix(CHANGED).split("/")[0] for source in sources])
    whole = np.ones(len(sources), bool)
    groups = [np.char.endswith(sources, CHANGED), *(named == name for name in np.unique(named))]
    known_NH = known(validation)
    found: dict[str, float] = {}
    for column, (head, floor) in enumerate(zip(validation.heads, floors_H, strict=True)):
        flagged = known_NH[:, column] * validation.targets_NH[:, column] >= max(floor, 1e-9)
        if not flagged.any():
            raise TrainingError(f"{head}: there is no text that the encoder flags at {floor:g}")
        limits = []
        for group in (whole, *(group for group in groups if (group & flagged).sum() >= FEWEST)):
            of_N = np.sort(logits_NH[flagged & group, column])
            limits.append(float(of_N[int(lost * len(of_N))]))
        found[head] = round(min(limits), 4)
    return found


def train(config: EarlyExitConfig, registry: Registry, data_root: Path, run: Path) -> None:
    """All of it, into `run/final` and `run/record.json`."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    encoder = registry.resolve(config.encoder)
    registry.verify(encoder)
    run.mkdir(parents=True, exist_ok=True)
    scored(config, encoder, data_root, run)
    validation, texts = (Scored.read(run / name) for name in TEXTS_AT_ONCE)
    model = EarlyExit(texts.states_TD.shape[1], config.channels, len(texts.heads))
    fit(
        model,
        texts,
        epochs=config.epochs,
        rows_per_batch=config.rows_per_batch,
        learning_rate=config.learning_rate,
        positive_weight=config.positive_weight,
        seed=config.seed,
    )
    write(config, encoder, model, validation, run)
    RunRecord(
        method="early-exit",
        config=config.model_dump(mode="json"),
        seed=config.seed,
        code_revision=code_revision(),
        data=sources(data_root),
        parent=encoder.ref,
    ).write(run)


def write(
    config: EarlyExitConfig,
    encoder: ResolvedCheckpoint,
    model: EarlyExit,
    validation: Scored,
    run: Path,
) -> None:
    """`run/final`: weights, and `exit.json` with what they are sure of."""
    final = run / "final"
    final.mkdir(exist_ok=True)
    save_file(halved(model), final / "exit.safetensors")
    labels = json.loads((encoder.path / "classifier.json").read_text(encoding="utf-8"))["labels"]
    floors = [config.floors["labels" if head in labels else "names"] for head in validation.heads]
    limits = sure(logits(model, validation), validation, floors, config.lost)
    about = {
        "at": config.at,
        "heads": validation.heads,
        "labels": labels,
        "reach": REACH,
        "lost": config.lost,
        "floors": dict(zip(validation.heads, floors, strict=True)),
        "sure": {head: round(limit - config.margin.get(head, 0.0), 4) for head, limit in limits.items()},
    }
    (final / "exit.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    notice = (encoder.path / "NOTICE.txt").read_text(encoding="utf-8")
    (final / "NOTICE.txt").write_text(NOTICE.format(name=config.name) + notice, encoding="utf-8")


NOTICE = """\
{name} was distilled from keel-guard, and reads its hidden states. What was said of keel-guard holds for it:

"""


def sources(data_root: Path) -> tuple[DataSource, ...]:
    """The files whose texts it learnt from, and those that limits were chosen on."""
    return data_sources(data_root, TRAINED_ON)


def publish_run(run: Path, registry: Path, name: str) -> ResolvedCheckpoint:
    """Into the registry, beside the encoder. Raises PublishError when a gate fails."""
    record = RunRecord.read(run)
    about = json.loads((run / "final" / "exit.json").read_text(encoding="utf-8"))
    draft = Draft(
        name=name,
        kind="classifier",
        method=record.method,
        config=record.config,
        seed=record.seed,
        code_revision=record.code_revision,
        description=f"An early exit from {record.parent}; see docs/SAFETY.md",
        parent=record.parent,
        data=record.data,
        evaluations=record.evaluations,
    )
    lost = f"at most {about['lost']:.1%} of what the encoder flags is lost in any source that set limits"
    return publish(run / "final", registry, draft, [Check("limits", True, lost)])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="keel-train early-exit",
        description="Distil a safety encoder into an exit after its lower layers.",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see training/configs")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KEEL_DATA", "../shared/data")))
    parser.add_argument("--registry", type=Path, default=Path("checkpoints"), help="where the encoder is")
    parser.add_argument("--run", type=Path, help="the run's directory (default: runs/NAME)")
    parser.add_argument(
        "--publish", action="store_true", help="place the finished run into the registry, and no more"
    )
    arguments = parser.parse_args(argv)
    config = EarlyExitConfig.load(arguments.config)
    run = arguments.run or Path("runs") / config.name
    if arguments.publish:
        print(f"published: {publish_run(run, arguments.registry, config.name).ref}")
        return 0
    train(config, Registry(arguments.registry), arguments.data, run)
    print(f"finished: {run / 'final'}")
    return 0
