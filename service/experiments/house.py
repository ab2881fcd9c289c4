"""Everything about experiments in one gateway: their files, who serves them, who looks at them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from policies.experiment import ExperimentLibrary
from service.audit import AuditLog
from service.auth import Callers
from service.catalog import Catalog
from service.experiments.control import Control
from service.experiments.live import Experiments
from service.outcomes import Outcomes
from service.store.database import Database, StoreError
from service.store.writer import Writer
from service.telemetry.metrics import Metrics

GRACE_SECONDS = 3.0
"""How long rows may take from any gateway to the store, before units are settled."""


class House:
    """A gateway without folders of experiments has no tasks here, and opens no store."""

    def __init__(
        self,
        folders: Sequence[Path],
        policies: Sequence[str],
        *,
        catalog: Catalog,
        callers: Callers,
        database: Database,
        writer: Writer,
        outcomes: Outcomes,
        metrics: Metrics,
        audit: AuditLog,
        log: FilteringBoundLogger,
        unit_key: bytes,
    ) -> None:
        """Reads the files. Raises `PolicyError` for what is wrong with them."""
        self._catalog = catalog
        self._log = log
        self.library = ExperimentLibrary(folders, policies)
        self.experiments = Experiments(catalog, callers, database, writer, outcomes, metrics, log, unit_key)
        self.control = Control(self.experiments, database, metrics, audit, log, grace_s=GRACE_SECONDS)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, watch: bool) -> None:
        """Serve the experiments; the policies are served already. A store that is away is waited for."""
        if not self.library.folders:
            return
        self.experiments.replace(self.library.snapshot())
        try:
            await self.experiments.follow()
        except StoreError as error:
            self._log.error("experiments_not_followed", error=str(error))
        loops = [self.experiments.follow_for_ever(), self.control.run_for_ever()]
        if watch:
            loops.append(self._watch())
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def reload(self) -> list[str]:
        """Read the files again, and hold them against the policies that are served now; what is wrong."""
        if not self.library.folders:
            return []
        names = [served.name for served in self._catalog.all()]
        outcome = await asyncio.to_thread(self.library.reload, names)
        self.experiments.replace(outcome.experiments)
        faults = [str(fault) for fault in outcome.faults]
        if outcome.changed or faults:
            level = self._log.error if faults else self._log.info
            level("experiments_reloaded", experiments=sorted(outcome.experiments), errors=faults)
        return faults

    async def aclose(self) -> None:
        """Stop looking, and end what nobody waits for."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.experiments.shadows.aclose()

    async def _watch(self) -> None:
        async for _ in self.library.watch():
            await self.reload()
