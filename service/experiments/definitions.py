"""Experiments that people make by the admin API: kept in the store, the same for all gateways that share it.

Each has a revision. Who replaces or archives one says which they saw, so that nobody undoes what they haven't
seen. Files and these are one set of names; where both have one, the file's is served. What the store said
last is in a file too, for a gateway that starts while the store is away: the control answers then.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson
from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from policies.experiment import ExperimentSpec, LoadedExperiment, misfits
from policies.explain import dotted
from service.audit import AuditLog
from service.experiments import state as states
from service.experiments.live import Experiments
from service.experiments.state import LIVE, Event
from service.openai.errors import Conflict, NotFound
from service.store.database import Database, StoreError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from service.store.definitions import Definition

Outcome = Literal["created", "replaced", "unchanged", "archived"]
Expected = int | Literal["any"] | None
"""The revision that whoever changes something saw; None where they believe that there is none."""

TRIES = 5


@dataclass(frozen=True, slots=True)
class Put:
    """What became of a definition."""

    outcome: Outcome
    definition: Definition


class _Late(Exception):
    """Others were faster; all of it is undone."""


class Definitions:
    """One gateway's view of them. `known` are all that there are, `usable` what can be served here."""

    def __init__(
        self,
        database: Database,
        experiments: Experiments,
        audit: AuditLog,
        log: FilteringBoundLogger,
        *,
        policies: Callable[[], Collection[str]],
        files: Callable[[], Mapping[str, LoadedExperiment]],
        copy: Path,
    ) -> None:
        """`policies` are the names of those that are served now, `files` the experiments of files.

        `copy` is where what the store said is kept for when it is away.
        """
        self._database = database
        self._experiments = experiments
        self._audit = audit
        self._log = log
        self._policies = policies
        self._files = files
        self._copy = copy
        self._read = False
        self.known: Mapping[str, Definition] = {}
        self.usable: Mapping[str, LoadedExperiment] = {}
        self.faults: Mapping[str, str] = {}

    async def follow(self) -> None:
        """Read them all. Raises `StoreError`."""
        await self._database.open()  # which loads the libraries, off the loop
        from service.store.definitions import load_definitions

        async with self._database.read() as connection:
            known = await load_definitions(connection)
        self._read = True
        if known != self.known:
            self.known = known
            self.check()
            await self._remember()

    async def recall(self) -> None:
        """Where the store could not be read yet: what it said last, in this gateway's former life."""
        if self._read:
            return
        self._read = True
        from service.store.definitions import Definition

        try:
            said = orjson.loads(await asyncio.to_thread(self._copy.read_bytes))
            self.known = {one["name"]: Definition(**one) for one in said}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError) as error:
            self._log.error("experiments_not_recalled", error=str(error))
            return
        self.check()

    async def _remember(self) -> None:
        partial = self._copy.with_suffix(f".{os.getpid()}.partial")
        said = orjson.dumps(list(self.known.values()))

        def write() -> None:
            self._copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial.write_bytes(said)
            os.replace(partial, self._copy)

        try:
            await asyncio.to_thread(write)
        except OSError as error:
            self._log.error("experiments_not_remembered", error=str(error))

    def check(self) -> None:
        """See which can be served, with the policies and files that there are now.

        Where one can't, what it was before stands, as long as its policies do.
        """
        policies, usable, faults = self._policies(), {}, {}
        for name, definition in self.known.items():
            if definition.archived:
                continue
            fault, loaded = self._loaded(definition, policies)
            before = self.usable.get(name)
            if loaded is None and before is not None and not list(misfits(before.spec, policies)):
                loaded = before
            if loaded is not None and fault != _TWIN:
                usable[name] = loaded
            if fault:
                faults[name] = fault
                if self.faults.get(name) != fault:
                    self._log.error("experiment_not_served", experiment=name, reason=fault)
        self.usable, self.faults = usable, faults

    def _loaded(
        self, definition: Definition, policies: Collection[str]
    ) -> tuple[str, LoadedExperiment | None]:
        """What is wrong with it, and what can be served of it."""
        if definition.name in self._files():
            return _TWIN, None
        try:
            spec = ExperimentSpec.model_validate(definition.spec)
        except ValidationError as error:  # written by another version of Keel
            return f"this version can't read it: {error.errors()[0]['msg']}", None
        problems = list(misfits(spec, policies))
        if problems:
            return "; ".join(f"{dotted(problem.loc)}{problem.message}" for problem in problems), None
        return "", LoadedExperiment.of(spec)

    def get(self, name: str) -> Definition:
        """One of them, archived or not. Raises `NotFound`."""
        definition = self.known.get(name)
        if definition is None:
            raise NotFound(f"no experiment {name[:64]!r} was made by the API")
        return definition

    # Changes

    async def put(self, spec: ExperimentSpec, expected: Expected, actor: str, *, dry_run: bool) -> Put:
        """Create or replace one; it begins, unless a person or a limit has ended it.

        Raises `Conflict` where another revision than `expected` is there or a file has the name, and
        `StoreError`.
        """
        if spec.name in self._files():
            raise Conflict(f"{spec.name!r} is defined in a file; change it there, or take another name")
        said = spec.model_dump(mode="json", exclude_unset=True)

        def change(before: Definition | None) -> Put:
            from service.store.definitions import Definition

            archived = before is None or before.archived
            if before is not None and not (archived and expected is None):
                _agree(before, expected)
            elif before is None and isinstance(expected, int):
                raise Conflict(f"there is no experiment {spec.name!r}; to make it, send no 'If-Match'")
            if before is not None and not archived and before.spec == said:
                return Put("unchanged", before)
            revision = before.revision + 1 if before else 1
            made = Definition(spec.name, revision, False, actor, time.time(), said)
            return Put("created" if archived else "replaced", made)

        return await self._change(spec.name, change, LoadedExperiment.of(spec), dry_run=dry_run)

    async def archive(self, name: str, expected: Expected, actor: str) -> Put:
        """Serve it no more; what was measured stays. Raises `NotFound`, and like `put`."""

        def change(before: Definition | None) -> Put:
            if before is None or before.archived:
                where = " (it is a file's: remove the file)" if name in self._files() else ""
                raise NotFound(f"no experiment {name[:64]!r} was made by the API{where}")
            if expected is not None:
                _agree(before, expected)
            gone = replace(before, revision=before.revision + 1, archived=True, actor=actor, at=time.time())
            return Put("archived", gone)

        return await self._change(name, change, None, dry_run=False)

    async def _change(
        self,
        name: str,
        change: Callable[[Definition | None], Put],
        loaded: LoadedExperiment | None,
        *,
        dry_run: bool,
    ) -> Put:
        await self._database.open()
        from service.store.definitions import load_definitions, save_definition

        for _ in range(TRIES):
            try:
                async with self._database.change() as connection:
                    put = change((await load_definitions(connection)).get(name))
                    if dry_run or put.outcome == "unchanged":
                        return put
                    saved = await save_definition(connection, put.definition)
                    if not (saved and await self._move_state(connection, put, loaded)):
                        raise _Late
            except _Late:
                continue
            actor, details = put.definition.actor, {"revision": put.definition.revision}
            self._audit.record(f"experiment.{put.outcome}", actor=actor, subject=name, details=details)
            self._log.info(f"experiment_{put.outcome}", experiment=name, actor=actor)
            return put
        raise StoreError(f"{name!r} is being changed by others; try again")

    async def _move_state(
        self, connection: AsyncConnection, put: Put, loaded: LoadedExperiment | None
    ) -> bool:
        """Begin what was made, end what was archived; False if others were faster."""
        from service.store import experiments as store

        definition, now = put.definition, time.time()
        state = (await store.load(connection, [definition.name])).get(definition.name)
        if loaded is None:
            live = self._experiments.live.get(definition.name)
            if state is None or state.status == "stopped" or live is None:
                return True
            event = Event("archive", definition.actor, now, "it was archived")
            return await store.save(connection, states.stop(state, live.spec, event), event)
        key = self._experiments.unit_key
        ended = state is not None and (state.status not in LIVE or state.unit_key != key)
        if put.outcome == "replaced" and ended:
            return True
        event = Event("begin", definition.actor, now, f"it was {put.outcome}")
        begun = states.begin(loaded.spec, self._experiments.version(loaded), key, state, event)
        return await store.save(connection, begun, event)


_TWIN = "a file defines it too, and the file's is served: remove the file, or archive this one"


def _agree(before: Definition, expected: Expected) -> None:
    if expected == "any" or expected == before.revision:
        return
    seen = "no 'If-Match' came" if expected is None else "another revision was expected"
    raise Conflict(
        f"{before.name!r} is at revision {before.revision}, and {seen}: look at it, and say what you saw "
        f"with 'If-Match: \"{before.revision}\"'"
    )
