"""The database: opened when something first needs it, brought up to date, and closed at the end.

    async with database.read() as connection: …      what others have committed
    async with database.change() as connection: …    one transaction; on SQLite it is the only one that writes

SQLite (the default, a file in the state folder) for one gateway or several on one machine; PostgreSQL for
several machines. SQLAlchemy and the drivers are loaded with the first use: a gateway that stores nothing
loads none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
BUSY_SECONDS = 15.0
MIGRATION_LOCK = 0x6B65_656C  # any number, the same in every gateway
DATA_EXCEPTION = "22"  # the class of PostgreSQL's codes for values that can't be stored
MIGRATIONS = Path(__file__).parent / "migrations"


class StoreError(Exception):
    """The store can't be used; the message says why, and holds no password."""


class RowRefused(StoreError):
    """The database will never take this row: a value is missing, too long, or of the wrong kind."""


class Database:
    """One database, by its URL."""

    def __init__(self, url: str) -> None:
        """`url` is SQLAlchemy's, with or without a driver; `Settings` has seen that it is one of ours."""
        self._given = url
        self._engine: AsyncEngine | None = None
        self._opening = asyncio.Lock()

    @property
    def there(self) -> bool:
        """Whether there may be something in it: a server's always, a file's once there is the file."""
        scheme, _, path = self._given.partition(":///")
        return not scheme.startswith("sqlite") or Path(path.partition("?")[0]).exists()

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection to look with. Raises `StoreError`."""
        engine = await self.open()
        with _told():
            async with engine.connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def change(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, committed at the end of the block and undone if it fails. Raises `StoreError`."""
        engine = await self.open()
        with _told():
            async with engine.connect() as connection:
                await connection.execution_options(keel_change=True)
                async with connection.begin():
                    yield connection

    async def open(self) -> AsyncEngine:
        """The engine, connected and migrated. Raises `StoreError`; may be called again after that."""
        if self._engine is not None:
            return self._engine
        async with self._opening:
            if self._engine is None:
                self._engine = await asyncio.to_thread(_prepare, self._given)
        return self._engine

    async def close(self) -> None:
        """Let go of the connections; a later use opens it again."""
        async with self._opening:
            engine, self._engine = self._engine, None
            if engine is not None:
                await engine.dispose()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The drivers' errors as `StoreError`."""
    from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

    try:
        yield
    except (DataError, IntegrityError) as error:
        raise RowRefused(f"the store refused a row: {type(error.orig).__name__}: {error.orig}") from error
    except DBAPIError as error:
        if reason := _refused(error.orig):
            raise RowRefused(f"the store refused a row: {reason}") from None
        raise StoreError(f"the store failed: {type(error.orig).__name__}: {error.orig}") from error
    except StatementError as error:
        raise RowRefused(f"the store refused a row: {error.orig}") from error
    except (OverflowError, UnicodeEncodeError) as error:  # SQLite's driver lets these through
        raise RowRefused(f"the store refused a row: {type(error).__name__}") from None
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise StoreError(f"the store can't be used: {error}") from error


def _refused(error: BaseException | None) -> str:
    """Why PostgreSQL will never take a value; empty where it is something else that failed.

    SQLAlchemy has no name for these. The driver's own message repeats the value, and is not told.
    """
    from asyncpg.exceptions import DataError, PostgresError  # type: ignore[import-untyped]

    cause = error.__cause__ if error is not None else None
    if isinstance(cause, DataError):
        return "a value of the wrong kind, or too large"
    if isinstance(cause, PostgresError) and str(cause.sqlstate).startswith(DATA_EXCEPTION):
        return type(cause).__name__
    return ""


def _parsed(given: str) -> URL:
    from sqlalchemy import make_url

    scheme, _, rest = given.partition("://")
    return make_url(f"{DRIVERS[scheme.partition('+')[0]]}://{rest}")


def _engine(url: URL, **options: Any) -> AsyncEngine:
    from sqlalchemy import event
    from sqlalchemy.ext.asyncio import create_async_engine

    options |= {"json_serializer": _to_json, "json_deserializer": _from_json}
    if url.get_backend_name() != "sqlite":
        return create_async_engine(url, pool_size=5, max_overflow=5, pool_pre_ping=True, **options)
    engine = create_async_engine(url, connect_args={"timeout": BUSY_SECONDS}, **options)

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions: we do
        cursor = connection.cursor()
        for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Connection) -> None:
        # Who will write takes the lock at once: one who has read first might not get it any more.
        change = connection.get_execution_options().get("keel_change")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if change else "BEGIN")

    return engine


def _to_json(value: Any) -> str:
    """As JSON columns hold it; numbers may be numpy's, and names SQLAlchemy's."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()


def _from_json(value: Any) -> Any:
    """What a JSON column holds; SQLite gives numbers as such."""
    return orjson.loads(value) if isinstance(value, str | bytes) else value


def _prepare(given: str) -> AsyncEngine:
    """Make the folder of an SQLite file, and bring the tables up to date. Takes a while: not for the loop."""
    with _told():
        url = _parsed(given)
        if url.get_backend_name() == "sqlite" and url.database:
            path = Path(url.database)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
        asyncio.run(_migrate(url))
        return _engine(url)


async def _migrate(url: URL) -> None:
    from sqlalchemy import text
    from sqlalchemy.pool import NullPool

    engine = _engine(url, poolclass=NullPool) if url.get_backend_name() == "sqlite" else _engine(url)
    try:
        async with engine.connect() as connection:
            await connection.execution_options(keel_change=True)
            async with connection.begin():
                # Of several gateways that start at once, one migrates; the others then find it done.
                if url.get_backend_name() != "sqlite":
                    await connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
                await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    from service.store.metadata import all_tables

    scripts = ScriptDirectory(str(MIGRATIONS))

    def steps(revision: Any, _: Any) -> Any:
        return scripts._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), scripts, fn=steps) as environment:
        environment.configure(connection=connection, target_metadata=all_tables())
        environment.run_migrations()
