"""Old rows go: what was kept of conversations, what was said of them, and the units of experiments.

Units and looks of an epoch that runs stay, however old: an analysis must not change behind itself. Those of
epochs that are over go, and of experiments that have ended.
"""

from __future__ import annotations

import time

from sqlalchemy import and_, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.experiments.state import LIVE
from service.store.comparisons import judgements, pairs
from service.store.completions import completions
from service.store.database import Database
from service.store.experiments import experiments, looks
from service.store.exposures import exposures
from service.store.feedback import feedback, feedback_keys, texts
from service.store.reviews import reviews
from service.store.rewards import rewards

KEEP_KEYS_S = 86_400.0
"""How long an `Idempotency-Key` is remembered."""


async def forget(database: Database, keep_s: float, now: float | None = None) -> int:
    """Delete what is older than `keep_s` seconds; how many rows that were. Raises `StoreError`."""
    now = time.time() if now is None else now
    ages = [(table, keep_s) for table in (texts, reviews, feedback, judgements, pairs, completions, rewards)]
    gone = 0
    async with database.change() as connection:
        for table, age in [*ages, (feedback_keys, min(keep_s, KEEP_KEYS_S))]:
            gone += (await connection.execute(delete(table).where(table.c.at < now - age))).rowcount
        gone += await _forget_epochs(connection, now - keep_s)
    return gone


async def _forget_epochs(connection: AsyncConnection, before: float) -> int:
    """Delete the older units and looks of what is over."""
    gone = 0
    known = await connection.execute(select(experiments.c.name, experiments.c.epoch, experiments.c.status))
    for name, epoch, status in known.all():
        for table in (exposures, looks):
            over = table.c.epoch < epoch if status in LIVE else table.c.epoch <= epoch
            old = and_(table.c.experiment == name, over, table.c.at < before)
            gone += (await connection.execute(delete(table).where(old))).rowcount
    return gone
