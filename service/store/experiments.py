"""How experiments stand, what happened to them, what was seen at each look, and who looks.

A state is changed by comparing its revision first: of two who change it at once, one sees that it was too
late. So the lease only saves work: two gateways that both believe they hold it do no harm.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    Column,
    Double,
    Index,
    Integer,
    String,
    Table,
    Text,
    cast,
    delete,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from service.experiments.state import Event, State
from service.store.metadata import METADATA
from service.store.writer import insert_rows

experiments = Table(
    "experiments",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("version", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("step", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("since", Double, nullable=False),
    Column("shares", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("unit_key", String(16), nullable=False),
    Column("revision", Integer, nullable=False),
)
events = Table(
    "experiment_events",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("experiment", String(64), nullable=False),
    Column("at", Double, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("shares", JSON, nullable=False),
    Index(None, "experiment", "at"),
)
looks = Table(
    "experiment_looks",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("experiment", String(64), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("report", JSON, nullable=False),
    Index(None, "experiment", "epoch", "at"),
)
leases = Table(
    "leases",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("expires", Double, nullable=False),
)

KEPT_LOOKS = 2_000


async def load(connection: AsyncConnection, names: Iterable[str]) -> dict[str, State]:
    """How these experiments stand, those that ever began."""
    rows = await connection.execute(select(experiments).where(experiments.c.name.in_(list(names))))
    return {row["name"]: State(**row) for row in rows.mappings()}


async def save(connection: AsyncConnection, state: State, event: Event) -> bool:
    """Put `state` in place of its former revision, with what led to it; False if others were faster."""
    values = state.row()
    if state.revision == 1:
        before = await load(connection, [state.name])
        if before:
            return False
        await insert_rows(connection, experiments, [values])
    else:
        here = (experiments.c.name == state.name) & (experiments.c.revision == state.revision - 1)
        result = await connection.execute(update(experiments).where(here).values(values))
        if result.rowcount != 1:
            return False
    row = {**event.row(), "id": secrets.token_hex(16), "experiment": state.name}
    row |= {"step": state.step, "epoch": state.epoch, "shares": state.shares}
    await insert_rows(connection, events, [row])
    return True


async def history(connection: AsyncConnection, name: str, limit: int = 200) -> list[dict[str, Any]]:
    """What happened, the latest first."""
    wanted = select(events).where(events.c.experiment == name).order_by(events.c.at.desc()).limit(limit)
    return [
        {str(key): value for key, value in row.items() if key not in ("id", "experiment")}
        for row in (await connection.execute(wanted)).mappings()
    ]


async def add_look(connection: AsyncConnection, name: str, epoch: int, at: float, report: Any) -> None:
    """Keep what was seen; of many looks, every other older one goes."""
    row = {"id": secrets.token_hex(16), "experiment": name, "epoch": epoch, "at": at, "report": report}
    await insert_rows(connection, looks, [row])
    mine = (looks.c.experiment == name) & (looks.c.epoch == epoch)
    ids = [row[0] for row in await connection.execute(select(looks.c.id).where(mine).order_by(looks.c.at))]
    if len(ids) > KEPT_LOOKS:
        await connection.execute(delete(looks).where(looks.c.id.in_(ids[: KEPT_LOOKS // 2 : 2])))


async def last_look(connection: AsyncConnection, name: str, epoch: int) -> dict[str, Any] | None:
    """The latest report of an epoch."""
    mine = (looks.c.experiment == name) & (looks.c.epoch == epoch)
    found = await connection.execute(select(looks.c.report).where(mine).order_by(looks.c.at.desc()).limit(1))
    report: dict[str, Any] | None = found.scalar_one_or_none()
    return report


async def looks_over_time(
    connection: AsyncConnection, name: str, epoch: int, keys: Sequence[str], limit: int = 200
) -> list[dict[str, Any]]:
    """What reports of an epoch say under `keys`, the earliest first, at most `limit` of them, evenly spread.

    They are long, and are read in a thread.
    """
    mine = (looks.c.experiment == name) & (looks.c.epoch == epoch)
    ids = [row[0] for row in await connection.execute(select(looks.c.id).where(mine).order_by(looks.c.at))]
    stride = -(-len(ids) // limit) if ids else 1
    chosen = ids[::-1][::stride]
    raw = select(cast(looks.c.report, Text)).where(looks.c.id.in_(chosen)).order_by(looks.c.at)
    texts = (await connection.execute(raw)).scalars().all()

    def read() -> list[dict[str, Any]]:
        reports = map(orjson.loads, texts)
        return [{key: report[key] for key in keys} for report in reports]

    return await asyncio.to_thread(read)


async def take_lease(
    connection: AsyncConnection, name: str, holder: str, *, now: float, seconds: float
) -> bool:
    """Hold the lease for some more seconds, if it is free or one's own. Within `database.change`."""
    await insert_rows(connection, leases, [{"name": name, "holder": "", "expires": 0.0}])
    free = (leases.c.name == name) & ((leases.c.holder == holder) | (leases.c.expires < now))
    taken = await connection.execute(update(leases).where(free).values(holder=holder, expires=now + seconds))
    return taken.rowcount == 1
