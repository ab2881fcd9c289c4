"""Publishing: a finished run becomes a checkpoint under a name that is never used again.

The files are copied into a hidden folder beside their destination, every gate is checked on that copy, a
model card is written, and one rename makes the checkpoint appear, whole. What fails a gate is not published;
the error says why. An alias is repointed last, so who serves the alias never sees anything unchecked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import yaml
from pydantic import JsonValue, ValidationError

from policies.manifest import (
    MANIFEST_NAME,
    SAFE_SUFFIXES,
    Base,
    CheckpointFile,
    DataSource,
    Evaluation,
    FileRole,
    Kind,
    Manifest,
    RegistryError,
)
from policies.manifest import Gate as GateOutcome
from policies.registry import Registry, ResolvedCheckpoint
from training.checks import Check, check_files
from training.config import Config
from training.errors import PublishError
from training.evaluate.report import EVALUATION_NAME, EvaluationFile
from training.gates import Gate, check_gates, gathered
from training.model_card import CARD_NAME, model_card
from training.provenance import RunRecord, folder_digest

__all__ = ["Check", "Draft", "PublishConfig", "list_files", "publish", "publish_run"]

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

    @classmethod
    def of(
        cls,
        record: RunRecord,
        name: str,
        kind: Kind = "full",
        description: str = "",
        evaluations: Sequence[Evaluation] | None = None,
    ) -> Draft:
        """A finished run as a checkpoint called `name`; `evaluations` stand in for the record's own."""
        stages = record.stages
        config = stages[0].config if len(stages) == 1 else {"stages": [stage.config for stage in stages]}
        return cls(
            name=name,
            kind=kind,
            method=record.method,
            config=json.loads(json.dumps(config)),
            seed=record.seed,
            code_revision=record.code_revision,
            description=description,
            parent=record.first_parent,
            base=record.first_base,
            data=record.all_data,
            evaluations=tuple(record.evaluations if evaluations is None else evaluations),
        )

    def manifest(self, files: tuple[CheckpointFile, ...], checks: Iterable[Check]) -> Manifest:
        """The manifest of these files, which have passed the checks."""
        ours = {field.name: getattr(self, field.name) for field in fields(self)}
        return Manifest(**ours, gate=GateOutcome(passed=True, checks=tuple(map(str, checks))), files=files)


def publish(
    source: Path,
    root: Path,
    draft: Draft,
    checks: Iterable[Check] = (),
    *,
    alias: str | None = None,
    evaluation: EvaluationFile | None = None,
    limits: Sequence[str] = (),
    new_template: bool = False,
) -> ResolvedCheckpoint:
    """Place the files of folder `source` into the registry at `root` as `draft.name`, with a model card.

    checks:       the method's own gates, already measured; the files are checked here.
    alias:        is made to mean the new checkpoint once it is in its place.
    evaluation:   kept beside the weights, so that a successor can be compared row by row.
    limits:       known weaknesses, a sentence each, for the card.
    new_template: the chat template differs from the parent's on purpose.

    Raises PublishError, with every reason, and leaves the registry as it was.
    """
    registry = Registry(root)
    _check_names(registry, draft.name, alias)
    parent = _parent(registry, draft)
    registry.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=registry.root, prefix=f".{draft.name}.") as scratch:
        staged = Path(scratch) / draft.name
        shutil.copytree(source, staged)
        (staged / MANIFEST_NAME).unlink(missing_ok=True)
        _name_base(staged, draft)
        if evaluation is not None:
            evaluation.write(staged / EVALUATION_NAME)
        outcomes = [*checks, *check_files(staged, draft.kind, parent, new_template)]
        if failed := [str(check) for check in outcomes if not check.passed]:
            raise PublishError(f"{source}: not published as {draft.name!r}: " + "; ".join(failed))
        (staged / CARD_NAME).write_text(model_card(draft, outcomes, limits), encoding="utf-8")
        for path in staged.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        manifest = draft.manifest(list_files(staged), outcomes)
        (staged / MANIFEST_NAME).write_bytes(manifest.to_bytes())
        os.rename(staged, registry.root / draft.name)
    checkpoint = registry.resolve(draft.name)
    registry.verify(checkpoint)
    return registry.point(alias, checkpoint.ref) if alias is not None else checkpoint


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


def _check_names(registry: Registry, name: str, alias: str | None) -> None:
    if (registry.root / name).exists():
        raise PublishError(
            f"{registry.root / name} exists; a name is never reused: publish under a new one, "
            "and let an alias point to it"
        )
    if alias is not None and (alias == name or alias in registry.names()):
        raise PublishError(f"{alias!r} is a checkpoint's name in {registry.root}; choose another alias")


def _parent(registry: Registry, draft: Draft) -> Path | None:
    """The parent's folder, verified, where it is in this registry."""
    if draft.parent is None or draft.parent.partition("@")[0] not in registry.names():
        return None
    try:
        parent = registry.resolve(draft.parent)
        registry.verify(parent)
    except RegistryError as error:
        raise PublishError(f"the parent of {draft.name!r} can't be compared with: {error}") from error
    return parent.path


def _name_base(folder: Path, draft: Draft) -> None:
    """An adapter's config names its base by where that was on the machine; here it is named by its digest."""
    path = folder / "adapter_config.json"
    if draft.kind != "adapter" or not path.is_file():
        return
    config = json.loads(path.read_bytes())
    config["base_model_name_or_path"] = draft.parent or (draft.base.name if draft.base else None)
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


class PublishConfig(Config):
    """How a run is published: what `--config` holds, and the command's options override.

    `gates` are as in `training.gates`. `evaluation` is a file of `keel-train evaluate policy --out`; by
    default the run's own `evaluation.json`, where there is one.
    """

    name: str
    kind: Kind = "full"
    description: str = ""
    alias: str | None = None
    gates: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    evaluation: Path | None = None
    notice: Path | None = None
    new_template: bool = False


def publish_run(run: Path, root: Path, config: PublishConfig) -> ResolvedCheckpoint:
    """Publish the finished run in `run`, if every gate holds. Raises PublishError with every reason."""
    record = RunRecord.read(run)
    if config.notice is not None:
        shutil.copyfile(config.notice, run / "final" / "NOTICE.txt")
    gates = [Gate.parse(text) for text in config.gates]
    file = _evaluation(run, config)
    measured = gathered(record.evaluations, file, config.name)
    parent = _parent_figures(Registry(root), record, measured)
    draft = Draft.of(
        record,
        config.name,
        config.kind,
        config.description,
        [metric.evaluation() for metric in measured.metrics],
    )
    return publish(
        run / "final",
        root,
        draft,
        check_gates(gates, measured, parent),
        alias=config.alias,
        evaluation=file.model_copy(update={"baseline": None}) if file is not None else None,
        limits=config.limits,
        new_template=config.new_template,
    )


def _evaluation(run: Path, config: PublishConfig) -> EvaluationFile | None:
    """The run's evaluation, if it is of these very weights. Raises PublishError for other weights'."""
    place = config.evaluation or run / EVALUATION_NAME
    if config.evaluation is None and not place.is_file():
        return None
    file = EvaluationFile.read(place)
    if file.weights is not None and file.weights != folder_digest(run / "final"):
        raise PublishError(
            f"{place}: measured other weights than those in {run / 'final'}; evaluate them again"
        )
    return file


def _parent_figures(registry: Registry, record: RunRecord, measured: EvaluationFile) -> EvaluationFile | None:
    """The parent's figures: measured together with the run's, or published with the parent."""
    ref = record.first_parent
    if ref is None:
        return None
    if measured.baseline is not None:
        if measured.baseline.subject != ref:
            raise PublishError(
                f"the evaluation compares with {measured.baseline.subject}, but the parent is {ref}; "
                "evaluate again with the parent's folder in checkpoints/ as --parent"
            )
        return measured.baseline
    try:
        parent = registry.resolve(ref)
    except RegistryError:
        return None
    kept = parent.path / EVALUATION_NAME
    file = EvaluationFile.read(kept) if kept.is_file() else None
    return gathered(parent.manifest.evaluations, file, ref)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="keel-train publish", description="Publish a finished run.")
    parser.add_argument("--run", type=Path, required=True, help="the run's directory")
    parser.add_argument("--config", type=Path, help="a YAML file of these options: name, kind, gates, …")
    parser.add_argument("--name", help="the checkpoint's name, never used before")
    parser.add_argument("--kind", choices=["full", "adapter", "reward", "classifier"])
    parser.add_argument("--registry", type=Path, default=Path("checkpoints"))
    parser.add_argument("--description")
    parser.add_argument("--alias", help="make this alias mean the new checkpoint")
    parser.add_argument(
        "--evaluation", type=Path, help="figures to gate on (default: the run's evaluation.json)"
    )
    parser.add_argument("--notice", type=Path, help="a text about licences to publish with it")
    parser.add_argument(
        "--gate",
        dest="gates",
        action="append",
        metavar="GATE",
        help="such as perplexity<=30, reward>=parent or violations<=parent+0.01; may be repeated",
    )
    parser.add_argument(
        "--limit", dest="limits", action="append", metavar="TEXT", help="a known weakness, for the model card"
    )
    parser.add_argument(
        "--new-template",
        action="store_true",
        default=None,
        help="its chat template differs from the parent's",
    )
    options = vars(parser.parse_args(argv))
    run, registry, file = options.pop("run"), options.pop("registry"), options.pop("config")
    given = {name: value for name, value in options.items() if value is not None}
    checkpoint = publish_run(run, registry, _config(file, given))
    print(f"published {checkpoint.ref}")
    for alias, ref in Registry(registry).aliases().items():
        if ref == checkpoint.ref:
            print(f"alias {alias} means {ref}")
    return 0


def _config(file: Path | None, given: dict[str, object]) -> PublishConfig:
    """The file's options, with those given on the command line in their place."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file is not None else {}
        return PublishConfig.model_validate({**content, **given})
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise PublishError(f"{file}: cannot be read as YAML options: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise PublishError(f"{file or 'publish'}: {problems}") from error
