"""Everything about experiments in one gateway: where they come from, who serves them, who looks at them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from policies.errors import Problem
from policies.experiment import ExperimentLibrary, ExperimentSpec, misfits
from service.audit import AuditLog
from service.auth import Callers
from service.catalog import Catalog
from service.experiments.control import Control
from service.experiments.definitions import Definitions, Expected, Put
from service.experiments.live import Experiments
from service.experiments.scoring import Scoring
from service.outcomes import Outcomes
from service.store.database import Database, StoreError
from service.store.writer import Writer
from service.telemetry.metrics import Metrics

FOLLOW_SECONDS = 2.0
ANSWER_SECONDS = 10.0
GRACE_SECONDS = 3.0
"""How long rows may take from any gateway to the store, before units are settled."""


class House:
    """A gateway without folders of experiments opens no store that isn't there for something else."""

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
        scoring: Scoring,
        state_dir: Path,
    ) -> None:
        """Reads the files. Raises `PolicyError` for what is wrong with them."""
        self._catalog = catalog
        self._database = database
        self._log = log
        self._scoring = scoring
        self.library = ExperimentLibrary(folders, policies, scoring.problems)
        self.experiments = Experiments(
            catalog, callers, database, writer, outcomes, metrics, log, unit_key, scoring
        )
        self.control = Control(self.experiments, database, metrics, audit, log, grace_s=GRACE_SECONDS)
        self.definitions = Definitions(
            database,
            self.experiments,
            audit,
            log,
            policies=self.policies,
            files=self.library.snapshot,
            copy=state_dir / "experiments.json",
        )
        self.faults: list[str] = []
        """What is wrong with the files now, as the last look at them has it."""
        self._tasks: list[asyncio.Task[None]] = []
        self._away = False  # whether the store could not be asked, which is told once
        self._followed = time.monotonic()  # when it was, last

    def check(self, spec: ExperimentSpec) -> Iterable[Problem]:
        """What is wrong with an experiment beyond its form and its policies; reads files."""
        return self._scoring.problems(spec)

    def policies(self) -> frozenset[str]:
        """The policies that arms may name."""
        return frozenset(served.name for served in self._catalog.all())

    async def start(self, *, watch: bool) -> None:
        """Serve the experiments; the policies are served already. A store that is away is waited for."""
        self._serve()
        if self._awake:
            await self._keep_up()
        await self._scoring.loaded()
        loops = [self._keep_up_for_ever(), self.control.run_for_ever()]
        if watch and self.library.folders:
            loops.append(self._watch())
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    @property
    def _awake(self) -> bool:
        """Whether there may be experiments."""
        return bool(self.library.folders) or self._database.there

    async def put(self, spec: ExperimentSpec, expected: Expected, actor: str, *, dry_run: bool) -> Put:
        """`Definitions.put`, and serve it."""
        done = await self.definitions.put(spec, expected, actor, dry_run=dry_run)
        await self._keep_up()
        return done

    async def archive(self, name: str, expected: Expected, actor: str) -> Put:
        """`Definitions.archive`, and serve it no more."""
        done = await self.definitions.archive(name, expected, actor)
        await self._keep_up()
        return done

    async def reload(self) -> list[str]:
        """Read the files again, and hold all against the policies that are served now; what is wrong."""
        outcome = await asyncio.to_thread(self.library.reload, self.policies())
        self.definitions.check()
        self._serve()
        mended, self.faults = bool(self.faults), [str(fault) for fault in outcome.faults]
        if outcome.changed or self.faults or mended:
            level = self._log.error if self.faults else self._log.info
            level("experiments_reloaded", experiments=sorted(outcome.experiments), errors=self.faults)
        return self.faults

    def _serve(self) -> None:
        every, policies = {**self.definitions.usable, **self.library.snapshot()}, self.policies()
        # A policy may be gone that a file's experiment still names: a reload that knows is on its way.
        fit = {name: one for name, one in every.items() if not list(misfits(one.spec, policies))}
        self.experiments.replace(fit)
        self._scoring.use([one.spec for one in fit.values()])

    async def aclose(self) -> None:
        """Stop looking, and end what nobody waits for."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.experiments.shadows.aclose()
        await self._scoring.aclose()

    async def _watch(self) -> None:
        async for _ in self.library.watch():
            await self.reload()

    async def _keep_up(self) -> None:
        """Take over what other gateways, and people, have made and decided."""
        before = self.definitions.usable
        try:
            await self._database.open()
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.definitions.follow()
                if self.definitions.usable != before:
                    self._serve()
                await self.experiments.follow()
        except (StoreError, TimeoutError) as error:
            if not self._away:
                self._log.error("experiments_not_followed", error=str(error) or "no answer in time")
            self._away = True
            self.experiments.lose_touch(time.monotonic() - self._followed)
            await self.definitions.recall()
            if self.definitions.usable != before:
                self._serve()
        else:
            self._away, self._followed = False, time.monotonic()

    async def _keep_up_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            if self._awake:
                await self._keep_up()
