"""A store of each kind, and ways to look into it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import text

from service.store.database import Database
from service.store.writer import Writer
from service.telemetry.metrics import Metrics

Open = Callable[..., AbstractAsyncContextManager[tuple[Database, Writer]]]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers("initdb"))])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store' / 'keel.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def open_store(store_url: str, tmp_path: Path) -> Open:
    @contextlib.asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[tuple[Database, Writer]]:
        database = Database(options.pop("url", store_url))
        options = {"every_s": 0.01, **options}
        writer = Writer(database, tmp_path / "spool", Metrics(), structlog.get_logger(), **options)
        try:
            yield database, writer
        finally:
            await writer.close()
            await database.close()

    return opened


async def ids(database: Database) -> list[str]:
    async with database.read() as connection:
        rows = await connection.execute(text("SELECT completion_id FROM completions ORDER BY completion_id"))
        return [row[0] for row in rows]


async def eventually(database: Database, wanted: list[str]) -> None:
    async with asyncio.timeout(10):
        while await ids(database) != wanted:  # noqa: ASYNC110 - nothing tells when they are there
            await asyncio.sleep(0.01)


def completion(name: str, **fields: Any) -> dict[str, Any]:
    """A row of the completions' table."""
    row: dict[str, Any] = {
        "completion_id": name,
        "request_id": "req-1",
        "at": 1.5,
        "kind": "chat",
        "policy": "plain",
        "policy_digest": "d" * 64,
        "checkpoint": "fake",
        "state": "finished",
        "status": "passed",
        "action": "allow",
        "stream": 0,
        "findings": [["pii", "PERSON", "redact", "output", 2]],
        "duration_s": 0.5,
        "tokens_in": 1,
        "tokens_out": 2,
        "characters": 3,
    }
    return {**row, **fields}
