"""Which of a trainer's checkpoints are whole: a marker with every file's digest, written last.

A checkpoint without its marker was cut off by a kill, one whose files have other digests was damaged; a run
goes on from neither. The marker also stands between the disk and torch's unpickler: optimizer states are
pickles, loaded with `weights_only` and only when they are byte for byte what this run wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

MARKER = "complete.json"
_PREFIX = "checkpoint-"


def mark_complete(checkpoint: Path) -> None:
    """Write the marker; called when every file of the checkpoint is there."""
    (checkpoint / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
    digests = {path.relative_to(checkpoint).as_posix(): _digest(path) for path in _files(checkpoint)}
    partial = checkpoint / f".{MARKER}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(digests, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, checkpoint / MARKER)


def is_complete(checkpoint: Path) -> bool:
    """Whether the marker is there and every file is what it says."""
    try:
        digests = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        return bool(digests) and all(_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest_complete(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps among `checkpoint-N` in `folder`."""
    return next(filter(is_complete, sorted(_checkpoints(folder), key=steps_of, reverse=True)), None)


def remove_incomplete(folder: Path) -> None:
    """Delete what a kill or a full disk left half-written."""
    for checkpoint in _checkpoints(folder):
        if not (checkpoint / MARKER).is_file():
            shutil.rmtree(checkpoint)


def steps_of(checkpoint: Path) -> int:
    """The number of steps after which it was written."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return [path for path in found if path.is_dir()]


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
