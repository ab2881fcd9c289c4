"""Rows into the database, many at a time and off the request path.

    writer.put("exposures", row)            returns at once; the row is in a file, and survives `kill -9`
    await writer.write("feedback", row)     returns when the row is committed; raises `StoreError` if it isn't

Both are idempotent: a row whose primary key is there already changes nothing, or takes its place where the
table says so (`metadata.py`). `put` may be used where the database is away: rows wait on disk, up to
`max_bytes` of them, beyond which they are dropped and counted. `write` fails at once then, so that its caller
can say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structlog.typing import FilteringBoundLogger

from service.store.database import Database, RowRefused, StoreError
from service.store.spool import Line, Spool, orphans, read, segments, size_of
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

BATCH = 500
MAX_WAITING_WRITES = 10_000
RETRY_SECONDS = (0.5, 30.0)
ORPHANS_EVERY_SECONDS = 60.0
CLOSE_SECONDS = 10.0
LARGEST = 2**31 - 1  # that PostgreSQL's integers hold

Row = dict[str, Any]


class Writer:
    """One gateway's way of writing to its store. Costs nothing before it is first used."""

    def __init__(
        self,
        database: Database,
        spool: Path,
        metrics: Metrics,
        log: FilteringBoundLogger,
        *,
        max_bytes: int = 256 * 1024 * 1024,
        every_s: float = 0.25,
    ) -> None:
        """`spool` is a folder on this machine's disk; `every_s` is how long rows that were put may gather."""
        self._database = database
        self._root = spool
        self._spool = Spool(spool)
        self._metrics = metrics
        self._log = log
        self._max_bytes = max_bytes
        self._every = every_s
        self._bytes = 0  # that wait in own segments
        self._oldest: float | None = None  # when the oldest row that waits was put
        self._put = asyncio.Event()
        self._writes: deque[tuple[Line, asyncio.Future[None]]] = deque()
        self._written = asyncio.Event()
        self._draining = asyncio.Lock()
        self._looked_for_orphans = 0.0
        self._drainer: asyncio.Task[None] | None = None
        self._committing: asyncio.Task[None] | None = None
        self._closed = False
        metrics.store_lag.set_function(self.lag)
        metrics.store_spool_bytes.set_function(lambda: self._bytes)

    def lag(self) -> float:
        """Seconds for which the oldest row has waited to be committed."""
        return 0.0 if self._oldest is None else time.time() - self._oldest

    # In

    def put(self, table: str, row: Row) -> bool:
        """Keep a row, to be committed soon. False where it had to be dropped."""
        if self._bytes >= self._max_bytes or self._closed:
            self._metrics.store_dropped.labels("closed" if self._closed else "full").inc()
            return False
        try:
            self._bytes += self._spool.append(table, row)
        except OSError as error:
            self._metrics.store_dropped.labels("disk").inc()
            self._log.error("store_spool_failed", error=str(error))
            return False
        if self._oldest is None:
            self._oldest = time.time()
        self._put.set()
        self._run()
        return True

    async def write(self, table: str, row: Row) -> None:
        """Commit a row, together with whatever others are waiting. Raises `StoreError`, `RowRefused`."""
        if self._closed:
            raise StoreError("the gateway is shutting down")
        if len(self._writes) >= MAX_WAITING_WRITES:
            raise StoreError("the store is overloaded")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writes.append(((table, row), done))
        self._written.set()
        self._run()
        await done

    # Life

    async def resume(self) -> None:
        """Take over what processes that died have left; returns at once."""
        if await asyncio.to_thread(size_of, self._root):
            self._put.set()
            self._run()

    async def flush(self) -> None:
        """Commit all that was put. Raises `StoreError`."""
        async with self._draining:
            await self._drain()

    async def close(self) -> None:
        """Commit what waits, for some seconds; what is left by then is on disk for the next start."""
        self._closed = True
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._committing is not None:
                    self._written.set()
                    await asyncio.shield(self._committing)
                if self._bytes:
                    await self.flush()
        except (TimeoutError, StoreError) as error:
            self._log.warning("store_left_on_disk", bytes=self._bytes, reason=str(error) or "too slow")
        tasks = [task for task in (self._committing, self._drainer) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _fail(self._writes, StoreError("the gateway is shutting down"))
        self._spool.close()

    def _run(self) -> None:
        if self._drainer is None:
            self._drainer = asyncio.create_task(self._drain_for_ever())
            self._committing = asyncio.create_task(self._commit_until_closed())

    # What was written

    async def _commit_until_closed(self) -> None:
        while self._writes or not self._closed:
            await self._written.wait()
            self._written.clear()
            while self._writes:
                size = min(BATCH, len(self._writes))
                batch = [self._writes.popleft() for _ in range(size)]
                try:
                    await self._commit_writes(batch)
                except StoreError as error:
                    _fail(batch, error)
                except Exception as error:  # those who wait are told, and the next ones are served
                    self._log.error("store_write_failed", exc_info=error)
                    _fail(batch, StoreError("the store failed; the gateway's log says how"))
                except BaseException:
                    _fail(batch, StoreError("the gateway is shutting down"))
                    raise

    async def _commit_writes(self, batch: Sequence[tuple[Line, asyncio.Future[None]]]) -> None:
        try:
            await self._commit([line for line, _ in batch])
        except RowRefused as error:
            if len(batch) == 1:
                raise
            for one in batch:  # one's fault is not the others'
                try:
                    await self._commit_writes([one])
                except StoreError as own:
                    _fail([one], own)
            self._log.warning("store_row_refused", error=str(error))
            return
        for _, done in batch:
            if not done.done():
                done.set_result(None)

    # What was put

    async def _drain_for_ever(self) -> None:
        pause = RETRY_SECONDS[0]
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ORPHANS_EVERY_SECONDS):
                    await self._put.wait()
            self._put.clear()
            await asyncio.sleep(self._every)
            try:
                await self.flush()
                pause = RETRY_SECONDS[0]
            except Exception as error:  # whatever it is: rows wait on disk, and are tried again
                self._log.error("store_unavailable", error=str(error), retry_s=pause, bytes=self._bytes)
                self._put.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS[1])

    async def _drain(self) -> None:
        began = time.time()
        closed = self._spool.cut()
        for segment in await asyncio.to_thread(segments, *closed) if closed else ():
            self._bytes -= await self._take(segment)
        self._oldest = began if self._bytes else None
        if time.monotonic() - self._looked_for_orphans >= ORPHANS_EVERY_SECONDS:
            with orphans(self._root) as folders:
                for folder in folders:
                    for segment in segments(folder):
                        await self._take(segment)
            self._looked_for_orphans = time.monotonic()

    async def _take(self, segment: Path) -> int:
        """Commit a segment and remove it; its size in bytes."""
        lines, unreadable = await asyncio.to_thread(read, segment)
        if unreadable:
            self._metrics.store_dropped.labels("unreadable").inc(unreadable)
            self._log.error("store_lines_unreadable", segment=segment.name, lines=unreadable)
        for start in range(0, len(lines), BATCH):
            await self._commit_readable(lines[start : start + BATCH])
        return await asyncio.to_thread(_remove, segment)

    async def _commit_readable(self, lines: Sequence[Line]) -> None:
        """Commit what the database takes of these."""
        try:
            await self._commit(lines)
        except RowRefused:
            for line in lines:
                await self._commit_fitted(line)

    async def _commit_fitted(self, line: Line) -> None:
        """Commit a row, if need be with its values cut to what the database takes."""
        try:
            try:
                await self._commit([line])
            except RowRefused as error:
                fitted = (line[0], _fitted(*line))
                if fitted == line:
                    raise
                await self._commit([fitted])
                self._log.warning("store_row_fitted", table=line[0], error=str(error))
        except RowRefused as error:
            self._metrics.store_dropped.labels("refused").inc()
            self._log.error("store_row_refused", table=line[0], error=str(error))

    # Out

    async def _commit(self, lines: Sequence[Line]) -> None:
        """One transaction."""
        from service.store.metadata import all_tables

        by_table: dict[str, list[Row]] = {}
        for table, row in lines:
            by_table.setdefault(table, []).append(row)
        tables = all_tables().tables
        began = time.perf_counter()
        async with self._database.change() as connection:
            for name, rows in by_table.items():
                if name not in tables:
                    raise RowRefused(f"the store has no table {name!r}")
                await insert_rows(connection, tables[name], rows)
        self._metrics.store_commit_duration.observe(time.perf_counter() - began)
        for name, rows in by_table.items():
            self._metrics.store_rows.labels(name).inc(len(rows))


async def insert_rows(connection: AsyncConnection, table: Table, rows: Iterable[Row]) -> None:
    """Insert rows, or what becomes of them where their keys are there already."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        statement: Any = sqlite_insert(table)
    else:
        from sqlalchemy.dialects.postgresql import insert as postgres_insert

        statement = postgres_insert(table)
    keys = list(table.primary_key)
    if table.info.get("again") == "replace":
        fresh = {column.name: statement.excluded[column.name] for column in table.c if column not in keys}
        statement = statement.on_conflict_do_update(index_elements=keys, set_=fresh)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=keys)
    names = [column.name for column in table.c]
    await connection.execute(statement, [{name: row.get(name) for name in names} for row in rows])


def _fitted(name: str, row: Row) -> Row:
    """A row without what no column holds: zero bytes, the end of long words, numbers beyond a column's."""
    from sqlalchemy import Integer, String

    from service.store.metadata import all_tables

    fitted = dict(row)
    table = all_tables().tables.get(name)
    for column in table.c if table is not None else ():
        value = row.get(column.name)
        if isinstance(value, str) and isinstance(column.type, String):
            fitted[column.name] = value.replace("\0", "\N{REPLACEMENT CHARACTER}")[: column.type.length]
        elif isinstance(value, int) and isinstance(column.type, Integer):
            fitted[column.name] = min(value, LARGEST)
    return fitted


def _fail(batch: Iterable[tuple[Line, asyncio.Future[None]]], error: StoreError) -> None:
    for _, done in batch:
        if not done.done():
            done.set_exception(error)


def _remove(segment: Path) -> int:
    size = segment.stat().st_size
    segment.unlink()
    return size
