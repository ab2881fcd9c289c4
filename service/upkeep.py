"""What a gateway does every so often while it runs: keys read again, old rows deleted, drift looked at.

Each is a task of its own. What goes wrong is logged, and tried again the next time.
"""

from __future__ import annotations

import asyncio

from structlog.typing import FilteringBoundLogger

from service.audit import GATEWAY, AuditLog
from service.auth import Callers, KeyFileError
from service.store.database import Database, StoreError
from service.telemetry.drift import Drift

KEY_REFRESH_SECONDS = 2.0
FORGET_EVERY_SECONDS = 3_600.0


async def refresh_keys(callers: Callers, audit: AuditLog, log: FilteringBoundLogger) -> None:
    """Take over what changed in the key file; a file that can't be read changes nothing."""
    while True:
        await asyncio.sleep(KEY_REFRESH_SECONDS)
        before = callers.names
        try:
            changed = await asyncio.to_thread(callers.refresh)
        except KeyFileError as error:
            log.error("key_file_unusable", error=str(error))
            continue
        if changed:
            log.info("keys_reloaded")
            names = callers.names
            details = {"added": sorted(names - before), "removed": sorted(before - names)}
            audit.record("keys.reload", actor=GATEWAY, subject="keys", details=details)


async def forget_old(database: Database, keep_seconds: float, log: FilteringBoundLogger) -> None:
    """Delete what was kept of conversations longer ago; a store that isn't there yet is left alone."""
    while True:
        await asyncio.sleep(FORGET_EVERY_SECONDS)
        if not database.there:
            continue
        try:
            await database.open()  # which loads the libraries, off the loop
            from service.store.retention import forget

            gone = await forget(database, keep_seconds)
        except StoreError as error:
            log.error("old_rows_not_deleted", error=str(error))
        else:
            log.info("old_rows_deleted", rows=gone)


async def watch_drift(drift: Drift, every_seconds: float, log: FilteringBoundLogger) -> None:
    """Compare the window with the reference, in a thread."""
    await asyncio.to_thread(drift.load)
    while True:
        await asyncio.sleep(every_seconds)
        try:
            await asyncio.to_thread(drift.look)
        except Exception as error:
            log.error("drift_unknown", error=str(error))
