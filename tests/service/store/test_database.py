"""The database opens, migrates once however many open it, and is what the code believes it to be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from service.settings import ConfigError, Settings
from service.store.database import MIGRATIONS, Database, StoreError
from service.store.metadata import all_tables


async def test_migrations_make_what_the_code_declares(store_url: str) -> None:
    database = Database(store_url)

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), all_tables()))

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


def test_migrations_are_one_chain() -> None:
    assert len(ScriptDirectory(str(MIGRATIONS)).get_heads()) == 1


async def test_what_was_said_before_there_were_objectives_stays(store_url: str) -> None:
    database = Database(store_url)
    columns = "completion_id, rater, kind, other, value, objective, policy, at"
    row = "INSERT INTO feedback ({}) VALUES ('c', 'r', 'thumb', '', '\"up\"', '{}', 'p', 1.0)"

    def back(connection: Connection) -> None:
        scripts = ScriptDirectory(str(MIGRATIONS))
        with EnvironmentContext(
            Config(), scripts, fn=lambda now, _: scripts._downgrade_revs("0005", now)
        ) as context:
            context.configure(connection=connection, target_metadata=all_tables())
            context.run_migrations()

    async with database.change() as connection:
        await connection.run_sync(back)
        await connection.execute(text(row.format(columns, "overall")))
    await database.close()
    async with database.change() as connection:
        await connection.execute(text(row.format(columns, "harmless")))
        said = (await connection.execute(text("SELECT objective FROM feedback ORDER BY 1"))).scalars().all()
        key = await connection.run_sync(lambda c: inspect(c).get_pk_constraint("feedback"))
    assert (said, key["constrained_columns"]) == (
        ["harmless", "overall"],
        ["completion_id", "rater", "kind", "other", "objective"],
    )
    await database.close()


async def test_gateways_that_start_at_once_migrate_once(store_url: str) -> None:
    databases = [Database(store_url) for _ in range(4)]
    await asyncio.gather(*(database.open() for database in databases))
    async with databases[0].read() as connection:
        versions = (await connection.execute(text("SELECT version_num FROM alembic_version"))).all()
    assert len(versions) == 1
    for database in databases:
        await database.close()


async def test_opening_again_keeps_what_is_there(store_url: str) -> None:
    for _ in range(2):
        database = Database(store_url)
        async with database.change() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS kept (x INTEGER)"))
            await connection.execute(text("INSERT INTO kept VALUES (1)"))
        async with database.read() as connection:
            count = (await connection.execute(text("SELECT count(*) FROM kept"))).scalar_one()
        await database.close()
    assert count == 2


async def test_a_failed_change_leaves_nothing(store_url: str) -> None:
    database = Database(store_url)
    async with database.change() as connection:
        await connection.execute(text("CREATE TABLE t (x INTEGER)"))
    with pytest.raises(ZeroDivisionError):
        async with database.change() as connection:
            await connection.execute(text("INSERT INTO t VALUES (1)"))
            raise ZeroDivisionError
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM t"))).scalar_one() == 0
    await database.close()


async def test_changes_at_once_wait_for_one_another(store_url: str) -> None:
    """Read-then-write in SQLite fails with 'database is locked' where the lock is taken too late."""
    database, other = Database(store_url), Database(store_url)
    async with database.change() as connection:
        await connection.execute(text("CREATE TABLE t (x INTEGER)"))
        await connection.execute(text("INSERT INTO t VALUES (0)"))

    async def add(where: Database) -> None:
        async with where.change() as connection:
            sqlite = connection.dialect.name == "sqlite"
            look = text("SELECT x FROM t" if sqlite else "SELECT x FROM t FOR UPDATE")
            value = (await connection.execute(look)).scalar_one()
            await connection.execute(text("UPDATE t SET x = :x"), {"x": value + 1})

    await asyncio.gather(*(add(where) for where in (database, other) * 5))
    async with other.read() as connection:
        assert (await connection.execute(text("SELECT x FROM t"))).scalar_one() == 10
    await database.close()
    await other.close()


async def test_an_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new/keel.db")
    await database.open()
    assert (tmp_path / "new" / "keel.db").stat().st_mode & 0o777 == 0o600
    await database.close()


async def test_an_unreachable_store_says_so_without_its_password() -> None:
    database = Database("postgresql://keel:hunter2@127.0.0.1:1/keel")
    with pytest.raises(StoreError) as caught:
        await database.open()
    assert "hunter2" not in str(caught.value)


def test_a_foreign_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="sqlite:/// or postgresql://"):
        Settings.load(None, store={"url": "mysql://somewhere/keel"})
