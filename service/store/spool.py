"""Rows on their way to the database, in files: what was appended outlives the process.

A process has a folder of its own, locked while it lives, with segments of JSON lines in it. A segment is
closed, read, written to the database in one transaction and then removed; after a crash it is read again,
and rows that are there already change nothing. Appending takes one system call, whose effect `kill -9`
doesn't undo. A machine that loses power may lose the last seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

LOCK = "lock"
SUFFIX = ".jsonl"
SEGMENT_BYTES = 256 * 1024

Line = tuple[str, dict[str, Any]]
"""A table's name, and a row of it."""


class Spool:
    """One process' folder."""

    def __init__(self, root: Path) -> None:
        """`root` holds the folders of all processes; nothing is made before the first row."""
        self._root = root
        self._folder: Path | None = None
        self._lock = -1
        self._file = -1
        self._size = 0
        self._number = 0

    def append(self, table: str, row: dict[str, Any]) -> int:
        """Keep a row; returns its size in bytes. Raises `OSError` where the disk won't have it."""
        line = orjson.dumps((table, row)) + b"\n"
        if self._file < 0 or self._size >= SEGMENT_BYTES:
            self.cut()
            self._open()
        written = os.write(self._file, line)
        self._size += len(line)
        if written < len(line):
            self.cut()  # what follows must not join the rest of a line
            raise OSError("the disk is full")
        return len(line)

    def cut(self) -> tuple[Path, str] | None:
        """Close the open segment; the folder, and the last closed one's name. None before any row."""
        if self._file >= 0:
            os.close(self._file)
            self._file, self._size = -1, 0
        return None if self._folder is None else (self._folder, self._name(self._number))

    def close(self) -> None:
        """Leave the folder: empty it is removed, else the next process finds it."""
        self.cut()
        if self._folder is not None:
            discard(self._folder)
            os.close(self._lock)
            self._folder, self._lock = None, -1

    def _open(self) -> None:
        while self._folder is None:
            folder = self._root / secrets.token_hex(8)
            folder.mkdir(parents=True, mode=0o700)
            lock = _locked(folder)
            if lock is not None:  # else one who looks for orphans was faster
                self._folder, self._lock = folder, lock
        self._number += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._file = os.open(self._folder / self._name(self._number), flags, 0o600)

    @staticmethod
    def _name(number: int) -> str:
        return f"{number:012d}{SUFFIX}"


def segments(folder: Path, last: str | None = None) -> list[Path]:
    """The segments in one process' folder, the oldest first; up to `last`, after which others may be open."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if last is None or path.name <= last)


@contextlib.contextmanager
def orphans(root: Path) -> Iterator[list[Path]]:
    """The folders of processes that live no longer, held against others who look for them too."""
    held: list[tuple[Path, int]] = []
    try:
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            # A folder without a lock file is one that is being made just now.
            if (folder / LOCK).exists() and (lock := _locked(folder)) is not None:
                held.append((folder, lock))
        yield [folder for folder, _ in held]
    finally:
        for folder, lock in held:
            discard(folder)
            os.close(lock)


def discard(folder: Path) -> None:
    """Remove a folder that holds no segments any more."""
    if not segments(folder):
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
            folder.rmdir()


def read(segment: Path) -> tuple[list[Line], int]:
    """A segment's rows, and how many lines can't be read: the last may have been cut by a full disk."""
    rows: list[Line] = []
    unreadable = 0
    with segment.open("rb") as file:
        for line in file:
            try:
                table, row = orjson.loads(line)
            except ValueError:
                unreadable += 1
            else:
                rows.append((table, row))
    return rows, unreadable


def size_of(root: Path) -> int:
    """How many bytes wait in all folders."""
    total = 0
    for segment in root.glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):
            total += segment.stat().st_size
    return total


def _locked(folder: Path) -> int | None:
    """The folder's lock, None where a living process holds it."""
    try:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
