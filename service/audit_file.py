"""An audit chain's files as they are written: under a lock, gone on with after a crash, rotated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple

import orjson

from service.audit_chain import (
    RECOVERED,
    AuditError,
    Head,
    Sealer,
    active_file,
    end_of,
    fragment,
    full_files,
    locked,
    parse,
)


class Entry(NamedTuple):
    """What is to be recorded; `details` is JSON."""

    at: datetime
    actor: str
    action: str
    subject: str
    details: bytes


class ChainFile:
    """The files, as one thread of one process writes them. Others may write to them, between two appends."""

    def __init__(self, folder: Path, name: str, sealer: Sealer, max_bytes: int) -> None:
        self.path = active_file(folder, name)
        self.head = Head()
        self.unsynced = False
        self._folder = folder
        self._name = name
        self._sealer = sealer
        self._max_bytes = max_bytes
        self._file: IO[bytes] | None = None
        self._size = -1  # of the file, when its last line was ours or seen

    def check(self) -> None:
        """Raises `AuditError` where the log can't be gone on with."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(self._folder, self._name):
                self._catch_up()
        except AuditError:
            self.close()
            raise
        except OSError as error:
            hint = "give the gateway a folder that it may write to ('state_dir' or 'audit.folder')"
            raise AuditError(
                f"the audit log {self.path} can't be written: {error.strerror}; {hint}"
            ) from error

    def append(self, entries: Sequence[Entry]) -> int:
        """Write the entries; the number of the first. Raises `AuditError`, `OSError`: none are written."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self._folder, self._name):
            file = self._catch_up()
            if entries:
                file = self._rotate(file)
            head, out = self.head, []
            for entry in entries:
                fields = {
                    "time": entry.at,
                    "actor": entry.actor,
                    "action": entry.action,
                    "subject": entry.subject,
                    "details": orjson.Fragment(entry.details),
                }
                line, head = self._sealer.line(head, fields)
                out.append(line)
            self._put(file, b"".join(out), head)
        return self.head.seq - len(entries) + 1

    def sync(self) -> None:
        """What was written is on disk when this returns. Raises `OSError`."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        self.unsynced = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._size = None, -1

    def _put(self, file: IO[bytes], data: bytes, head: Head) -> None:
        written = 0
        try:
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            os.ftruncate(file.fileno(), self._size)  # a part of it, on a full disk: nobody has seen it yet
            raise
        self._size += len(data)
        self.head = head
        self.unsynced = self.unsynced or bool(data)

    def _catch_up(self) -> IO[bytes]:
        """The file to write to, and the chain's end in it: another process may have gone on with both."""
        file = self._file
        if file is not None and not _same(file, self.path):
            self.close()
            file = None
        if file is None:
            file = self._file = _open(self.path)
        size = os.fstat(file.fileno()).st_size
        if size != self._size:
            self._read_end(file, size)
        return file

    def _read_end(self, file: IO[bytes], size: int) -> None:
        found, torn = self._end_of(file, size, self.path)
        full = full_files(self._folder, self._name)
        if not found.seq and full:
            with full[-1].open("rb") as before:
                found, _ = self._end_of(before, os.fstat(before.fileno()).st_size, full[-1])
        if found.seq < self.head.seq:
            found = self.head  # lines are gone: go on as if they were there, which shows the gap
        self.head, self._size = found, size
        if not torn:
            return
        if (whole := self._fits(torn)) is not None:  # only its line feed is missing
            self._put(file, b"\n", whole)
            return
        fields = {
            "time": datetime.now(UTC),
            "actor": "gateway",
            "action": RECOVERED,
            "subject": self.path.name,
            "details": fragment(torn),
        }
        line, head = self._sealer.line(self.head, fields)
        self._put(file, line if torn.endswith(b"\n") else b"\n" + line, head)

    def _fits(self, line: bytes) -> Head | None:
        record = parse(line)
        if record is None or record.seq != self.head.seq + 1 or record.prev != self.head.seal:
            return None
        return Head(record.seq, record.seal) if self._sealer.why_not(line, record) is None else None

    def _end_of(self, file: IO[bytes], size: int, path: Path) -> tuple[Head, bytes]:
        """The last record, and what a crash left behind it. Raises `AuditError`."""
        try:
            line, behind = end_of(file, size)
            record = parse(line)
            if record is None:
                return Head(), behind
            doubt = self._sealer.why_not(line, record)
            if doubt is not None and record.key in (None, self._sealer.key_id):
                raise AuditError(f"record {record.seq}: {doubt}")
        except AuditError as error:
            raise AuditError(
                f"the audit log {path} is damaged at its end ({error}); look at it with `keel audit verify`, "
                "keep it, and move the files of this chain elsewhere to begin another"
            ) from None
        return Head(record.seq, record.seal), behind

    def _rotate(self, file: IO[bytes]) -> IO[bytes]:
        if self._size < self._max_bytes:
            return file
        os.fsync(file.fileno())
        file.close()
        os.rename(self.path, self._folder / f"{self._name}.{self.head.seq:012d}.jsonl")
        self._file = fresh = _open(self.path)
        self._size = 0
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return fresh


def _open(path: Path) -> IO[bytes]:
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(handle, "ab+", buffering=0)


def _same(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
