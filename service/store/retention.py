"""Old rows go: what was kept of conversations, and what was said of them."""

from __future__ import annotations

import time

from sqlalchemy import delete

from service.store.comparisons import judgements, pairs
from service.store.completions import completions
from service.store.database import Database
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
    return gone
