"""The audit log: who did what, written so that it can't be changed afterwards without showing.

    gateway.audit.record("policy.promote", actor=actor_of(caller), subject="assistant", details={…})
    await gateway.audit.flush()      # it is on disk now

`record` only puts the entry into a queue; a thread of its own seals and writes it (format: `audit_chain`).
Details hold names, counts and digests: never a text of a prompt or a reply, never a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from service.audit_chain import AuditError, Head, Sealer
from service.audit_file import ChainFile, Entry
from service.auth import Caller

INTERVAL = 0.05  # seconds between looks at the queue
SYNC_EVERY = 1.0  # seconds between calls of fsync that nobody waits for, and the span of a folded record
MAX_WAITING = 100_000
MAX_FOLDED = 256
MAX_DETAILS = 8 * 1024
MAX_NAME = 256
GATEWAY = "gateway"
NOTHING = b"{}"


def actor_of(caller: Caller | None) -> str:
    """How records call who called: by the key's name, which is not the key."""
    if caller is None:
        return "anonymous"
    return f"{'admin' if caller.admin else 'key'}:{caller.name}"


def cli_actor() -> str:
    """How records call who runs a command on this machine."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"cli:{os.getuid()}"


class _Folded:
    __slots__ = ("count", "first")

    def __init__(self, first: Entry) -> None:
        self.first = first
        self.count = 1


class AuditLog:
    """One chain. Safe to call from any thread; several processes may write to the same chain."""

    def __init__(
        self,
        folder: Path,
        name: str = "gateway",
        *,
        key: bytes | None = None,
        max_bytes: int = 64 * 2**20,
        written: Callable[[str, int], None] = lambda action, seq: None,
        failed: Callable[[str], None] = lambda message: None,
    ) -> None:
        """`written` hears of every record on its way to disk, `failed` why the disk did not take one.

        Both are called in the log's thread. Nothing is opened yet.
        """
        self._chain = ChainFile(folder, name, Sealer(key), max_bytes)
        self._written = written
        self._failed = failed
        self._waiting: deque[Entry] = deque()
        self._unwritten: list[Entry] = []  # the thread's
        self._folded: dict[tuple[str, str, str, bytes], _Folded] = {}
        self._lock = threading.Lock()  # of the two below, the folded and the thread's beginning
        self._thread: threading.Thread | None = None
        self._flushes: list[Callable[[AuditError | None], None]] = []
        self._overflow: dict[tuple[str, str], int] = {}
        self._wake = threading.Event()
        self._closing = False
        self._synced = self._last_fold = time.monotonic()
        self.error: AuditError | None = None

    def open(self) -> None:
        """Open the chain and see that it can be gone on with; blocks. Raises `AuditError`."""
        self._chain.check()

    @property
    def head(self) -> Head:
        """The last record that was written here."""
        return self._chain.head

    @property
    def waiting(self) -> int:
        """Records that are not written yet."""
        return len(self._waiting) + len(self._unwritten)

    def record(
        self, action: str, *, actor: str, subject: str, details: Mapping[str, Any] | None = None
    ) -> None:
        """Put an entry into the queue; never blocks. Raises `TypeError` for details that aren't JSON."""
        entry = _entry(action, actor, subject, details)
        if self.waiting < MAX_WAITING:
            self._waiting.append(entry)
        else:  # the disk hangs; what can't be kept whole is still counted
            with self._lock:
                _add(self._overflow, (action, subject))
        self._start()

    def fold(
        self, action: str, *, actor: str, subject: str, details: Mapping[str, Any] | None = None
    ) -> None:
        """As `record`, for what may come in floods: equal entries within a second become one with a count."""
        entry = _entry(action, actor, subject, details)
        key = (action, actor, subject, entry.details)
        with self._lock:
            folded = self._folded.get(key)
            if folded is not None:
                folded.count += 1
            elif len(self._folded) < MAX_FOLDED:
                self._folded[key] = _Folded(entry)
            else:
                _add(self._overflow, (action, subject))
        self._start()

    async def flush(self) -> None:
        """Wait until all that was recorded so far is on disk. Raises `AuditError` where it isn't."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[AuditError | None] = loop.create_future()

        def settle(error: AuditError | None) -> None:
            if not done.done():
                done.set_result(error)

        def tell(error: AuditError | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, error)

        with self._lock:
            if self._closing:
                raise AuditError("the audit log is closed")
            self._flushes.append(tell)
        self._start()
        self._wake.set()
        error = await done
        if error is not None:
            raise error

    def close(self) -> None:
        """Write what is waiting and stop; blocks. Raises `AuditError` where something can't be written."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            late, self._flushes = self._flushes, []
        for tell in late:
            tell(AuditError("the audit log is closed"))
        self._chain.close()
        if self.error is not None:
            raise self.error

    # The thread

    def _start(self) -> None:
        if self._thread is not None or self._closing:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="audit-log", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(INTERVAL)
            self._wake.clear()
            self._write()
        self._write()

    def _write(self) -> None:
        """One look at the queue. What could not be written stays in it."""
        now = time.monotonic()
        with self._lock:
            flushes, self._flushes = self._flushes, []
        must = bool(flushes) or self._closing
        batch = self._unwritten + [self._waiting.popleft() for _ in range(len(self._waiting))]
        if (must or now - self._last_fold >= SYNC_EVERY) and len(batch) < MAX_WAITING:
            batch += self._take_folded()
        sync = must or now - self._synced >= SYNC_EVERY
        self._unwritten = batch
        if batch or (sync and self._chain.unsynced):
            self._append(batch, sync)
        if sync:
            self._synced = now
        for tell in flushes:
            tell(self.error)

    def _append(self, batch: list[Entry], sync: bool) -> None:
        try:
            seq = self._chain.append(batch)
            self._unwritten = []
            for number, entry in enumerate(batch, seq):
                self._written(entry.action, number)
            if sync:
                self._chain.sync()
        except Exception as error:  # whatever it is, the thread goes on, and tries again
            why = error.strerror if isinstance(error, OSError) else error
            if self.error is None:
                self._failed(f"{self._chain.path}: {why}")
            self.error = AuditError(f"the audit log {self._chain.path} can't be written: {why}")
        else:
            self.error = None

    def _take_folded(self) -> list[Entry]:
        with self._lock:
            folded, self._folded = self._folded, {}
            overflow, self._overflow = self._overflow, {}
        self._last_fold = time.monotonic()
        out = [
            one.first
            if one.count == 1
            else one.first._replace(
                details=orjson.dumps({**orjson.loads(one.first.details), "count": one.count})
            )
            for one in folded.values()
        ]
        out += [
            _entry("audit.overflow", GATEWAY, subject, {"action": action, "count": count})
            for (action, subject), count in overflow.items()
        ]
        return out


def _entry(action: str, actor: str, subject: str, details: Mapping[str, Any] | None) -> Entry:
    written = orjson.dumps(dict(details)) if details else NOTHING
    if len(written) > MAX_DETAILS:
        written = orjson.dumps({"left_out": "too long", "bytes": len(written)})
    return Entry(datetime.now(UTC), _name(actor), _name(action), _name(subject), written)


def _name(text: str) -> str:
    # A lone surrogate can't be written; it must not stop what waits behind it.
    return text[:MAX_NAME].encode("utf-8", "replace").decode()


def _add(counts: dict[tuple[str, str], int], key: tuple[str, str]) -> None:
    """Count, in a bounded number of places."""
    if key not in counts and len(counts) >= MAX_FOLDED:
        key = (key[0], "*")
    counts[key] = counts.get(key, 0) + 1
