"""Who looks at experiments and changes how they stand: the gateway at its intervals, and people.

Of several gateways one looks at a time, by a lease in the store; all follow what it decides. A change
compares revisions first, so that nobody overwrites what they haven't seen.
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from structlog.typing import FilteringBoundLogger

from policies.experiment import ExperimentSpec
from service.audit import AuditLog
from service.experiments import state as states
from service.experiments.assignment import Live
from service.experiments.live import Experiments
from service.experiments.scoring import lateness
from service.experiments.state import LIVE, Event, NotPossible, State
from service.openai.errors import NotFound
from service.store.database import Database, StoreError
from service.telemetry.metrics import Metrics, child

LEASE = "experiments"
REPORT = "service.experiments.report"
LEASE_SECONDS = 15.0
TICK_SECONDS = 0.5
AWAY_SECONDS = 2.0  # until a store that can't be reached is tried again
TRIES = 5
DRAWN = ("at", "arms", "shadows", "mismatch")  # of a look, over time

Change = Callable[[State, Event], State]


class Control:
    """One gateway's hand on its experiments."""

    def __init__(
        self,
        experiments: Experiments,
        database: Database,
        metrics: Metrics,
        audit: AuditLog,
        log: FilteringBoundLogger,
        *,
        grace_s: float,
    ) -> None:
        """`grace_s`: how long rows may take from another gateway to the store."""
        self._experiments = experiments
        self._database = database
        self._metrics = metrics
        self._audit = audit
        self._log = log
        self._grace = grace_s
        self._holder = secrets.token_hex(8)
        self._leased_until = 0.0
        self._away = False  # whether the store could not be reached, which is told once
        self._looked: dict[str, tuple[str, float]] = {}  # the version that was looked at last, and when

    # The gateway's own looks

    async def run_for_ever(self) -> None:
        """Look at each experiment when its time has come."""
        while True:
            for name, live in list(self._experiments.live.items()):
                version, at = self._looked.get(name, ("", 0.0))
                if version == live.version and time.time() - at < live.spec.every_s:
                    continue
                try:
                    if await self._leads():
                        self._looked[name] = (live.version, time.time())
                        await self.look(name)
                except StoreError as error:
                    if not self._away:
                        self._log.error("experiment_not_evaluated", experiment=name, error=str(error))
                    self._away = True
                    self._looked.pop(name, None)
                    await asyncio.sleep(AWAY_SECONDS)
                except Exception as error:
                    self._log.error("experiment_not_evaluated", experiment=name, exc_info=error)
                else:
                    self._away = False
            await asyncio.sleep(TICK_SECONDS)

    async def _leads(self) -> bool:
        """Whether this gateway is the one that looks."""
        now = time.time()
        if now < self._leased_until - LEASE_SECONDS / 2:
            return True
        await self._open()
        from service.store.experiments import take_lease

        async with self._database.change() as connection:
            held = await take_lease(connection, LEASE, self._holder, now=now, seconds=LEASE_SECONDS)
        self._leased_until = now + LEASE_SECONDS if held else 0.0
        return held

    async def _open(self) -> None:
        """The store, and the libraries for a look, which take a while to load: not on the loop."""
        await self._database.open()
        if REPORT not in sys.modules:
            await asyncio.to_thread(importlib.import_module, REPORT)

    async def look(self, name: str) -> None:
        """Settle what can be settled, look, decide, and keep all of it. Raises `StoreError`."""
        live = self._experiments.live[name]
        state = await self._current(live)
        if state is None:
            return
        from service.experiments.decide import decide
        from service.experiments.report import look
        from service.store import experiments as store
        from service.store.exposures import BATCH, settle

        spec, now = live.spec, time.time()
        settled = BATCH
        while settled == BATCH:
            async with self._database.change() as connection:
                settled = await settle(
                    connection,
                    name,
                    state.epoch,
                    now=now,
                    window_s=spec.window_s,
                    grace_s=self._grace + lateness(spec.scorer),
                    scored=spec.scorer is not None,
                )
        async with self._database.read() as connection:
            report = await look(connection, spec, state, now)
        decision = decide(spec, state, report, now)
        async with self._database.change() as connection:
            await store.add_look(connection, name, state.epoch, now, report)
            saved = decision is not None and await store.save(connection, *decision)
        if decision is not None and saved:
            await self._tell(name, decision[1])
        elif decision is not None and decision[1].action == "roll_back":
            await self._roll_back_all_the_same(spec, decision[1])

    async def _roll_back_all_the_same(self, spec: ExperimentSpec, event: Event) -> None:
        """Somebody has changed something else meanwhile, such as approved the next step, without knowing."""

        def change(state: State, event: Event) -> State:
            if state.status not in LIVE:
                raise NotPossible(f"{spec.name!r} is {state.status}")
            return states.roll_back(state, spec, event)

        with suppress(NotPossible):
            await self._change(spec.name, event, change)

    async def _current(self, live: Live) -> State | None:
        """The state to look at, begun where the experiment is new or another than it was."""
        from service.store import experiments as store

        async with self._database.change() as connection:
            state = (await store.load(connection, [live.spec.name])).get(live.spec.name)
            if state is not None and state.unit_key != self._experiments.unit_key:
                return None
            if state is not None and (state.version == live.version or state.status not in LIVE):
                return state if live.fits(state) else None
            reason = "its file, or an arm's policy, has changed" if state else "it is new"
            event = Event("begin", "gateway", time.time(), reason)
            state = states.begin(live.spec, live.version, self._experiments.unit_key, state, event)
            if not await store.save(connection, state, event):
                return None
        await self._tell(live.spec.name, event)
        return state

    # People

    async def approve(self, name: str, actor: str, reason: str, step: int | None = None) -> State:
        """Let the ramp take the step that waits, if it is the one that is named (from 0).

        Raises `NotFound`, `NotPossible`, `StoreError`, like all.
        """
        spec = self._spec(name)
        return await self._change(
            name, Event("approve", actor, time.time(), reason), lambda s, e: states.approve(s, spec, step, e)
        )

    async def promote(self, name: str, actor: str, reason: str, arm: str | None = None) -> State:
        """Give everything to one arm."""
        spec = self._spec(name)
        return await self._change(
            name, Event("promote", actor, time.time(), reason), lambda s, e: states.promote(s, spec, arm, e)
        )

    async def roll_back(self, name: str, actor: str, reason: str) -> State:
        """Give everything to the control."""
        spec = self._spec(name)
        return await self._change(
            name, Event("roll_back", actor, time.time(), reason), lambda s, e: states.roll_back(s, spec, e)
        )

    async def stop(self, name: str, actor: str, reason: str) -> State:
        """End it: the control answers."""
        spec = self._spec(name)
        return await self._change(
            name, Event("stop", actor, time.time(), reason), lambda s, e: states.stop(s, spec, e)
        )

    async def ramp(self, name: str, actor: str, reason: str, step: int | None = None) -> State:
        """Begin anew, from the first step or the one that is named (from 0)."""
        live = self._live(name)
        key = self._experiments.unit_key
        return await self._change(
            name,
            Event("ramp", actor, time.time(), reason),
            lambda s, e: states.restart(s, live.spec, live.version, key, step, e),
        )

    def _live(self, name: str) -> Live:
        live = self._experiments.live.get(name)
        if live is None:
            known = ", ".join(sorted(self._experiments.live)) or "none"
            raise NotFound(f"there is no experiment {name[:64]!r}; there are: {known}")
        return live

    def _spec(self, name: str) -> ExperimentSpec:
        return self._live(name).spec

    async def _change(self, name: str, event: Event, change: Change) -> State:
        self._live(name)
        await self._open()
        from service.store import experiments as store

        for _ in range(TRIES):
            async with self._database.change() as connection:
                before = (await store.load(connection, [name])).get(name)
                if before is None:
                    raise NotPossible(f"{name!r} has not begun yet; try again in a moment")
                state = change(before, event)
                saved = await store.save(connection, state, event)
            if saved:
                await self._tell(name, event)
                return state
        raise StoreError(f"{name!r} is being changed by others; try again")

    async def _tell(self, name: str, event: Event) -> None:
        """Into the audit log, the metrics and the log; and follow at once."""
        details: dict[str, Any] = {"reason": event.reason}
        self._audit.record(f"experiment.{event.action}", actor=event.actor, subject=name, details=details)
        child(self._metrics.experiment_changes, name, event.action).inc()
        level = self._log.warning if event.action == "roll_back" else self._log.info
        level(
            "experiment_changed", experiment=name, action=event.action, actor=event.actor, reason=event.reason
        )
        await self._experiments.follow()

    # For whoever asks

    async def overview(self, name: str, *, looks: bool = True) -> dict[str, Any]:
        """All there is to show of an experiment: see docs/EXPERIMENTS.md. Raises `NotFound`, `StoreError`."""
        live = self._live(name)
        await self._open()
        from service.experiments.decide import missing
        from service.store import experiments as store

        async with self._database.read() as connection:
            state = (await store.load(connection, [name])).get(name)
            epoch = state.epoch if state else 0
            report = await store.last_look(connection, name, epoch)
            history = await store.history(connection, name) if looks else []
            earlier = await store.looks_over_time(connection, name, epoch, DRAWN) if looks else []
        spec = live.spec
        waits = missing(spec, state, report, time.time()) if state and report else []
        shown: dict[str, Any] = {
            "name": name,
            "description": spec.description,
            "origin": "file" if live.loaded.path else "api",
            "path": str(live.loaded.path) if live.loaded.path else None,
            "status": state.status if state else "starting",
            "fault": live.fault,
            "reason": state.reason if state else "",
            "epoch": epoch,
            "since": state.since if state else None,
            "revision": state.revision if state else 0,
            "control": spec.control.name,
            "arms": [
                {"name": arm.name, "policy": arm.policy, "share": live.shares[arm.name]} for arm in spec.arms
            ],
            "shadows": [shadow.model_dump() for shadow in spec.shadows],
            "scorer": spec.scorer.model_dump(mode="json") if spec.scorer else None,
            "metrics": list(spec.metrics),
            "unit": list(spec.unit),
            "window_s": spec.window_s,
            "every_s": spec.every_s,
            "alpha": spec.alpha,
            "ramp": {**spec.ramp.model_dump(), "step": state.step if state else 0, "waits_for": waits}
            if spec.ramp
            else None,
            "look": report,
        }
        if looks:
            drawn = [{**one, "mismatch": one["mismatch"]["p"]} for one in earlier]
            shown |= {"looks": drawn, "history": history}
        return shown
