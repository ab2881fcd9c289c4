"""What a run leaves behind for the manifest: how it was made, from what, and how good it is.

`record.json` in the run's directory. A run that starts from another one's result carries that one's
record, so that a checkpoint names everything its weights have seen.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from pydantic import JsonValue, ValidationError

from policies.manifest import MANIFEST_NAME, Base, CheckpointError, DataSource, Evaluation, Manifest
from training.config import Config
from training.errors import TrainingError

RECORD_NAME = "record.json"
_OURS = ("training.", "policies.")


class RunRecord(Config):
    """One finished run. It started from nothing, from the weights of the run `earlier`, from those of the
    published checkpoint `parent` (`name@digest`), or from the foreign weights `base`."""

    method: str
    config: dict[str, JsonValue]
    seed: int
    code_revision: str
    data: tuple[DataSource, ...]
    evaluations: tuple[Evaluation, ...] = ()
    earlier: RunRecord | None = None
    parent: str | None = None
    base: Base | None = None

    @property
    def stages(self) -> tuple[RunRecord, ...]:
        """This run and those before it, the first one first."""
        return (*(self.earlier.stages if self.earlier else ()), self)

    @property
    def first_parent(self) -> str | None:
        """The published checkpoint that the first stage started from."""
        return self.stages[0].parent

    @property
    def first_base(self) -> Base | None:
        """The foreign weights that the first stage started from."""
        return self.stages[0].base

    @property
    def all_data(self) -> tuple[DataSource, ...]:
        """Every file that any stage was trained on, once."""
        return tuple(dict.fromkeys(source for stage in self.stages for source in stage.data))

    def write(self, run: Path) -> None:
        (run / RECORD_NAME).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, run: Path) -> RunRecord:
        """The record in `run`; raises TrainingError where there is none, so the run isn't finished."""
        path = run / RECORD_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise TrainingError(f"{path}: no record of a finished run; let the run end first") from error
        except ValidationError as error:
            raise TrainingError(f"{path}: not a run record: {error}") from error


def origin(init: Path) -> tuple[RunRecord | None, str | None]:
    """What weights in folder `init` come from: (the run's record, None) or (None, the checkpoint's ref).

    Raises TrainingError where the folder is neither a finished run's nor a published checkpoint.
    """
    manifest = init / MANIFEST_NAME
    if not manifest.is_file():
        return RunRecord.read(init.parent), None
    try:
        return None, Manifest.read(manifest).ref
    except CheckpointError as error:
        raise TrainingError(str(error)) from error


def folder_digest(folder: Path) -> str:
    """Hex SHA-256 over the names and digests of the weights in `folder`, which is how a base is named."""
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def code_revision() -> str:
    """The commit of this code, with `+changes` where a module in use differs from it."""
    root = Path(__file__).parent.parent
    files = [module.__file__ for name, module in sorted(sys.modules.items()) if name.startswith(_OURS)]
    try:
        revision = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", *(file for file in files if file))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return finished.stdout.strip()
