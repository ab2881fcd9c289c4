"""Experiments that were made by the admin API, a row each; what was archived stays, for its name and history.

A row is changed by comparing its revision first, as an experiment's state is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import JSON, Column, Double, Integer, String, Table, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.metadata import METADATA
from service.store.writer import insert_rows

definitions = Table(
    "experiment_definitions",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("archived", Integer, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("at", Double, nullable=False),
    Column("spec", JSON, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Definition:
    """One of them. `spec` is what `ExperimentSpec` reads; `at` is when it was last changed."""

    name: str
    revision: int
    archived: bool
    actor: str
    at: float
    spec: dict[str, Any]


async def load_definitions(connection: AsyncConnection) -> dict[str, Definition]:
    """All of them, by name."""
    rows = (await connection.execute(select(definitions).order_by(definitions.c.name))).mappings()
    return {row["name"]: Definition(**{**row, "archived": bool(row["archived"])}) for row in rows}


async def save_definition(connection: AsyncConnection, definition: Definition) -> bool:
    """Put it in place of its former revision; False if others were faster."""
    values = asdict(definition) | {"archived": int(definition.archived)}
    if definition.revision == 1:
        await insert_rows(connection, definitions, [values])
        found = await connection.execute(
            select(definitions.c.actor, definitions.c.at).where(definitions.c.name == definition.name)
        )
        return tuple(found.one()) == (definition.actor, definition.at)
    here = (definitions.c.name == definition.name) & (definitions.c.revision == definition.revision - 1)
    return (await connection.execute(update(definitions).where(here).values(values))).rowcount == 1
