"""Publishing: a finished run becomes a checkpoint under a name that is never used again.

The files are copied into a hidden folder beside their destination, every gate is checked on that copy, and
one rename makes the checkpoint appear, whole. What fails a gate is not published; the error says why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open

from policies.manifest import (
    MANIFEST_NAME,
    SAFE_SUFFIXES,
    Base,
    CheckpointFile,
    DataSource,
    Evaluation,
    FileRole,
    Gate,
    Kind,
    Manifest,
)
from policies.registry import Registry, ResolvedCheckpoint
from training.errors import PublishError
from training.provenance import RunRecord

_ROLES: dict[str, FileRole] = {
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "special_tokens_map.json": "tokenizer",
    "vocab.txt": "tokenizer",
    "vocab.json": "tokenizer",
    "merges.txt": "tokenizer",
    "chat_template.jinja": "chat_template",
    "config.json": "config",
    "generation_config.json": "config",
    "NOTICE.txt": "notice",
    "NOTICE.md": "notice",
}


@dataclass(frozen=True, slots=True)
class Check:
    """A gate and its outcome; `detail` is the figure or the reason."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Draft:
    """The manifest's fields that the files don't tell."""

    name: str
    kind: Kind
    method: str
    config: dict[str, JsonValue]
    seed: int
    code_revision: str
    description: str = ""
    parent: str | None = None
    base: Base | None = None
    data: tuple[DataSource, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()


def publish(source: Path, root: Path, draft: Draft, checks: Iterable[Check] = ()) -> ResolvedCheckpoint:
    """Place the files of folder `source` into the registry at `root` as `draft.name`.

    `checks` are the method's own gates, already measured; the weights are checked here. Raises
    PublishError, with every reason, and leaves the registry as it was.
    """
    registry = Registry(root)
    if (registry.root / draft.name).exists():
        raise PublishError(
            f"{registry.root / draft.name} exists; a name is never reused: publish under a new one, "
            "and let an alias point to it"
        )
    registry.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=registry.root, prefix=f".{draft.name}.") as scratch:
        staged = Path(scratch) / draft.name
        shutil.copytree(source, staged)
        (staged / MANIFEST_NAME).unlink(missing_ok=True)
        for path in staged.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        outcomes = [*checks, *check_weights(staged)]
        if failed := [str(check) for check in outcomes if not check.passed]:
            raise PublishError(f"{source}: not published as {draft.name!r}: " + "; ".join(failed))
        manifest = Manifest(
            name=draft.name,
            kind=draft.kind,
            method=draft.method,
            description=draft.description,
            config=draft.config,
            seed=draft.seed,
            code_revision=draft.code_revision,
            parent=draft.parent,
            base=draft.base,
            data=draft.data,
            evaluations=draft.evaluations,
            gate=Gate(passed=True, checks=tuple(map(str, outcomes))),
            files=list_files(staged),
        )
        (staged / MANIFEST_NAME).write_bytes(manifest.to_bytes())
        os.rename(staged, registry.root / draft.name)
    checkpoint = registry.resolve(draft.name)
    registry.verify(checkpoint)
    return checkpoint


def list_files(folder: Path) -> tuple[CheckpointFile, ...]:
    """Every file below `folder` with its digest; raises PublishError for what is no data format."""
    listed = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or path.suffix not in SAFE_SUFFIXES:
            raise PublishError(
                f"{path}: only plain {', '.join(sorted(SAFE_SUFFIXES))} files are published; remove it"
            )
        role: FileRole = "weights" if path.suffix in (".safetensors", ".onnx") else _ROLES.get(name, "other")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        listed.append(CheckpointFile(path=name, role=role, bytes=len(content), sha256=digest))
    return tuple(listed)


def check_weights(folder: Path) -> list[Check]:
    """Every safetensors file opens, and every number in it is finite."""
    checks = []
    for path in sorted(folder.rglob("*.safetensors")):
        count, odd = 0, []
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  no mapping, though it has keys
                    tensor = tensors.get_tensor(name)
                    count += tensor.numel()
                    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                        odd.append(name)
        except SafetensorError as error:
            checks.append(Check(path.name, False, f"not a safetensors file: {error}"))
            continue
        detail = f"{count:,} numbers, all finite" if not odd else f"NaN or infinity in {', '.join(odd[:3])}"
        checks.append(Check(path.name, count > 0 and not odd, detail))
    return checks


def gate(evaluations: Iterable[Evaluation], limits: dict[str, float]) -> list[Check]:
    """Each limit against the figure of that name: the upper end of its interval must stay below."""
    figures = {evaluation.metric: evaluation for evaluation in evaluations}
    checks = []
    for metric, limit in limits.items():
        figure = figures.get(metric)
        if figure is None:
            checks.append(Check(metric, False, "was not measured"))
            continue
        worst = figure.value if figure.high is None else figure.high
        verb = "at most" if worst <= limit else "above"
        checks.append(Check(metric, worst <= limit, f"{worst:.4g}, {verb} {limit:.4g}"))
    return checks


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="keel-train publish", description="Publish a finished run.")
    parser.add_argument("--run", type=Path, required=True, help="the run's directory")
    parser.add_argument("--name", required=True, help="the checkpoint's name, never used before")
    parser.add_argument("--kind", default="full", choices=["full", "adapter", "reward", "classifier"])
    parser.add_argument("--registry", type=Path, default=Path("checkpoints"))
    parser.add_argument("--description", default="")
    parser.add_argument("--notice", type=Path, help="a text about licences to publish with it")
    parser.add_argument(
        "--at-most", action="append", default=[], metavar="METRIC=LIMIT", help="a gate; may be repeated"
    )
    arguments = parser.parse_args(argv)
    record = RunRecord.read(arguments.run)
    if arguments.notice is not None:
        shutil.copyfile(arguments.notice, arguments.run / "final" / "NOTICE.txt")
    stages = record.stages
    config = stages[0].config if len(stages) == 1 else {"stages": [stage.config for stage in stages]}
    draft = Draft(
        name=arguments.name,
        kind=arguments.kind,
        method=record.method,
        config=json.loads(json.dumps(config)),
        seed=record.seed,
        code_revision=record.code_revision,
        description=arguments.description,
        parent=record.first_parent,
        data=record.all_data,
        evaluations=record.evaluations,
    )
    checks = gate(record.evaluations, dict(_limit(text) for text in arguments.at_most))
    checkpoint = publish(arguments.run / "final", arguments.registry, draft, checks)
    print(f"published {checkpoint.ref}")
    return 0


def _limit(text: str) -> tuple[str, float]:
    metric, equals, limit = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return metric, float(limit)
    except ValueError as error:
        raise PublishError(f"--at-most {text}: write METRIC=LIMIT, such as perplexity=30") from error
