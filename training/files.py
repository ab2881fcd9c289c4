"""Files that are either whole or not there, and a full disk that is told as one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from training.errors import TrainingError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries that pass on no errno say: safetensors the system's words, torch's zip writer its own.
_FULL_WORDS = (
    *(os.strerror(number) for number in _FULL),
    "PytorchStreamWriter failed writing",
    "unexpected pos",
)


@contextmanager
def appearing(place: Path) -> Iterator[Path]:
    """A folder to write into, which is renamed to `place` when the block ends, and removed when it fails.

    What `place` held is replaced. Raises TrainingError where the disk is full.
    """
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_errors(place):
            partial.mkdir(parents=True)
            yield partial
            shutil.rmtree(place, ignore_errors=True)
            os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Tell a disk that is full as a TrainingError that names `place`; every other error passes."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if getattr(error, "errno", None) not in _FULL and not any(
            words in str(error) for words in _FULL_WORDS
        ):
            raise
        free = shutil.disk_usage(_existing(place)).free
        raise TrainingError(
            f"{place}: could not be written, the disk is full or a file-size limit was reached "
            f"({free:,} bytes are free); nothing half-written was left: make room and give the command again"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, whole. Makes its folder."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


def _existing(place: Path) -> Path:
    return next(folder for folder in (place, *place.absolute().parents) if folder.exists())
