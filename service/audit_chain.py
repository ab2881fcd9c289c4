"""The audit log on disk: JSON lines, each of which seals the one before it.

    {"seq":7,"time":"…Z","actor":"admin:ops","action":"policy.reload","subject":"policies","details":{…},
     "key":"1f3a90c2","prev":"<seal of line 6>","seal":"<64 hex digits>"}

`seal` is the SHA-256 of the line's bytes up to it, `prev` included, or their HMAC-SHA256 where the log is
keyed; `key` then names the key without telling it. So a line that was changed, removed, inserted or moved
shows: it or its successor no longer fits. What a chain can't show by itself is that its last lines are
missing; `Head` is what a witness elsewhere keeps to see that too.

A chain's files are `NAME.jsonl`, which is written to, and `NAME.<last seq>.jsonl`, which are full.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

START = "0" * 64
SEAL = b',"seal":"'
SEALED = len(SEAL) + 64 + len(b'"}')
MAX_LINE = 64 * 1024
RECOVERED = "audit.recovered"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class AuditError(Exception):
    """The audit log can't be written or read; the message says where and what to do."""


class Head(NamedTuple):
    """The last record of a chain: its number and its seal."""

    seq: int = 0
    seal: str = START

    def __str__(self) -> str:
        return f"{self.seq}:{self.seal}"


@dataclass(frozen=True, slots=True)
class Record:
    """One entry, as it was read."""

    seq: int
    time: str
    actor: str
    action: str
    subject: str
    details: dict[str, Any]
    prev: str
    seal: str
    key: str | None = None


class Sealer:
    """Makes and checks seals, with a key or without."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key
        self.key_id = hashlib.sha256(b"keel audit key\0" + key).hexdigest()[:8] if key else None

    def seal(self, body: bytes, *, keyed: bool) -> str:
        """The seal of a line's bytes up to its seal. `keyed` needs a key."""
        if keyed:
            return hmac.new(self._key or b"", body, hashlib.sha256).hexdigest()
        return hashlib.sha256(body).hexdigest()

    def line(self, head: Head, fields: dict[str, Any]) -> tuple[bytes, Head]:
        """The line that follows `head`, line feed included, and the head that it makes."""
        key = {"key": self.key_id} if self.key_id else {}
        record = {"seq": head.seq + 1, **fields, **key, "prev": head.seal}
        body = orjson.dumps(record, option=orjson.OPT_UTC_Z)[:-1]
        seal = self.seal(body, keyed=self.key_id is not None)
        return body + SEAL + seal.encode() + b'"}\n', Head(head.seq + 1, seal)

    def why_not(self, line: bytes, record: Record) -> str | None:
        """Why the line's seal can't be trusted; None where it can. Without a key, keyed lines can't be."""
        if record.key is not None and record.key != self.key_id:
            ours = f"the one given is {self.key_id}" if self.key_id else "none was given"
            return f"sealed with the key {record.key}; {ours}"
        expected = self.seal(line[:-SEALED], keyed=record.key is not None)
        if not hmac.compare_digest(expected, record.seal):
            return "its seal is wrong: the line was changed after it was written"
        return None


def parse(line: bytes) -> Record | None:
    """A line without its line feed; None where it is no record at all."""
    if line[-SEALED : -SEALED + len(SEAL)] != SEAL:
        return None
    try:
        raw: dict[str, Any] = orjson.loads(line)
        whole = isinstance(raw.get("seq"), int) and isinstance(raw.get("details"), dict)
        return Record(**raw) if whole else None
    except (orjson.JSONDecodeError, TypeError, AttributeError):
        return None


def fragment(torn: bytes) -> dict[str, Any]:
    """What the record after a torn end says of it; line feeds at its end don't count."""
    torn = torn.rstrip(b"\n")
    return {"torn_bytes": len(torn), "torn_sha256": hashlib.sha256(torn).hexdigest()}


# Files


def active_file(folder: Path, name: str) -> Path:
    """The file that is written to."""
    return folder / f"{name}.jsonl"


def full_files(folder: Path, name: str) -> list[Path]:
    """The files before it, oldest first."""
    numbered = re.compile(re.escape(name) + r"\.(\d+)\.jsonl")
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := numbered.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def chain_names(folder: Path) -> list[str]:
    """The chains in a folder."""
    if not folder.is_dir():
        return []
    return sorted({path.name.partition(".")[0] for path in folder.glob("*.jsonl")})


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Nobody else writes to the chain meanwhile. Raises `OSError`.

    The lock is on a file of its own, which is never renamed.
    """
    handle = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def lines(file: IO[bytes], limit: int | None = None) -> Iterator[bytes]:
    """The file's lines, line feeds included, within its first `limit` bytes; the last may have none."""
    left = limit if limit is not None else os.fstat(file.fileno()).st_size
    while left > 0 and (line := file.readline(min(left, MAX_LINE))):
        left -= len(line)
        yield line


def end_of(file: IO[bytes], size: int) -> tuple[bytes, bytes]:
    """The last line that is a record, and all that stands behind it; empty where there is none.

    Raises `AuditError` where the last record is too far away to be what a crash left.
    """
    start = max(0, size - 2 * MAX_LINE)
    file.seek(start)
    behind = b""
    for line in reversed(re.findall(rb"[^\n]*\n|[^\n]+", file.read(size - start))):
        if line.endswith(b"\n") and parse(line[:-1]) is not None:
            return line[:-1], behind
        behind = line + behind
    if start:
        raise AuditError(f"the last {len(behind)} bytes hold no record")
    return b"", behind


# Verification


@dataclass(slots=True)
class Account:
    """What verification found of one chain. `problems` are in the order of the files."""

    name: str
    first: int = 0  # the number of the first record that is here
    head: Head = field(default_factory=Head)
    records: int = 0
    unkeyed: int = 0
    recovered: int = 0
    problems: list[str] = field(default_factory=list)
    last_time: str = ""


class Verifier:
    """Reads a chain from its oldest file on, and notes every place where it doesn't hold."""

    def __init__(self, folder: Path, name: str, sealer: Sealer, expect: Head | None = None) -> None:
        """`expect` is a record that a witness kept: it must be there, with this seal."""
        self._folder = folder
        self._sealer = sealer
        self._expect = expect
        self._seen = False
        self._torn = b""
        self._torn_at = ""
        self.account = Account(name)

    def verify(self) -> Account:
        """Raises `AuditError` where a file can't be read."""
        account = self.account
        try:
            for path, size in self._files():
                with path.open("rb") as file:
                    for number, line in enumerate(lines(file, size), 1):
                        self._line(f"{path.name}:{number}", line)
        except OSError as error:
            raise AuditError(f"{error.filename or self._folder}: {error.strerror}") from error
        if self._torn:
            account.problems.append(f"{self._torn_at}: the line is no record, and nothing follows it")
        if self._expect is not None and not self._seen:
            missing = f"record {self._expect.seq} with the seal that was expected is not there"
            account.problems.append(f"{account.name}: {missing}: the log was cut or replaced")
        return account

    def _files(self) -> list[tuple[Path, int]]:
        name, active = self.account.name, active_file(self._folder, self.account.name)
        try:
            with locked(self._folder, name):
                paths = [*full_files(self._folder, name), *([active] if active.exists() else [])]
                return [(path, path.stat().st_size) for path in paths]
        except PermissionError:  # a copy on a read-only disk, to which nobody writes
            paths = [*full_files(self._folder, name), *([active] if active.exists() else [])]
            return [(path, path.stat().st_size) for path in paths]

    def _line(self, place: str, line: bytes) -> None:
        record = parse(line.rstrip(b"\n"))
        if record is None:
            self._torn_at = self._torn_at if self._torn else place
            self._torn += line
            return
        account, problems = self.account, self.account.problems
        doubt = self._sealer.why_not(line.rstrip(b"\n"), record)
        if doubt is not None:
            problems.append(f"{place}: record {record.seq}: {doubt}")
        self._settle_torn(record)
        if not account.records:
            account.first = record.seq
            if record.seq == 1 and record.prev != START:
                problems.append(f"{place}: record 1 follows another record, which is not there")
        elif record.seq != account.head.seq + 1:
            problems.append(f"{place}: record {record.seq} follows record {account.head.seq}")
        elif record.prev != account.head.seal:
            problems.append(f"{place}: record {record.seq} does not fit the one before it")
        if self._sealer.key_id is not None and record.key is None:
            account.unkeyed = record.seq
        account.records += 1
        account.head, account.last_time = Head(record.seq, record.seal), record.time
        if self._expect is not None and account.head == self._expect:
            self._seen = True

    def _settle_torn(self, record: Record) -> None:
        """What a crash tore is vouched for by the record after it."""
        if not self._torn:
            return
        if record.action == RECOVERED and record.details == fragment(self._torn):
            self.account.recovered += 1
        else:
            self.account.problems.append(f"{self._torn_at}: the line is no record")
        self._torn = b""


def read(folder: Path, name: str) -> Iterator[Record]:
    """A chain's records, oldest first, unverified; what is no record is passed over."""
    active = active_file(folder, name)
    for path in [*full_files(folder, name), *([active] if active.exists() else [])]:
        with path.open("rb") as file:
            for line in lines(file):
                record = parse(line.rstrip(b"\n"))
                if record is not None:
                    yield record


def when(text: str) -> datetime:
    """A record's time."""
    return datetime.fromisoformat(text)
