"""The experiments that this gateway serves: who gets which arm, and what the store says of their state.

A request for a model that is no experiment costs one look-up in a dictionary. Where the store hasn't answered
yet, or was written under another key, the control answers and nothing is recorded: a state that isn't known
may be one in which an arm was taken back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from policies.experiment import LoadedExperiment
from service.auth import Callers
from service.catalog import Catalog
from service.experiments.assignment import (
    ARM_HEADER,
    SESSION_HEADER,
    Assignment,
    Live,
    Recent,
    Unit,
    UnitHasher,
    exposure_id,
    exposure_row,
    unit_of,
)
from service.experiments.scoring import Scoring
from service.experiments.shadows import Shadows
from service.http import Call
from service.openai.errors import BadRequest, Forbidden
from service.outcomes import Outcome, Outcomes
from service.store.database import Database
from service.store.writer import Writer
from service.telemetry.metrics import Metrics, child

if TYPE_CHECKING:
    from service.generation import Generation
    from service.openai.types import ChatRequest, CompletionRequest

STALE_S = 60.0
"""How long a state that can't be looked up is relied on, beside the experiment's own interval."""

ADRIFT = "the store can't be reached, so that nobody looks at the limits: the control answers meanwhile"


class Experiments:
    """All of them. `live` maps an experiment's name to how it runs here."""

    def __init__(
        self,
        catalog: Catalog,
        callers: Callers,
        database: Database,
        writer: Writer,
        outcomes: Outcomes,
        metrics: Metrics,
        log: FilteringBoundLogger,
        unit_key: bytes,
        scoring: Scoring,
    ) -> None:
        self._catalog = catalog
        self._callers = callers
        self._database = database
        self._writer = writer
        self._metrics = metrics
        self._log = log
        self._hasher = UnitHasher(unit_key)
        self._recent = Recent()
        self.shadows = Shadows(metrics)
        self.scoring = scoring
        self.live: Mapping[str, Live] = {}
        outcomes.subscribe(self._record, _recorded)

    @property
    def unit_key(self) -> str:
        """The fingerprint of the key under which units are hashed."""
        return self._hasher.fingerprint

    # Requests

    def assign(self, request: ChatRequest | CompletionRequest, call: Call, kind: str) -> Assignment:
        """The arm that answers. The exposure is on disk when this returns.

        Raises `Forbidden` or `BadRequest` for an arm that may not be chosen, or isn't there.
        """
        live = self.live[request.model]
        spec = live.spec
        unit = unit_of(
            spec,
            session=call.received.get(SESSION_HEADER),
            user=request.user,
            key=call.caller.name if call.caller else None,
        )
        wanted = call.received.get(ARM_HEADER)
        arm = live.arm_of(unit) if wanted is None else self._chosen(live, wanted, call)
        assignment = self._assignment(live, arm, unit, call, chosen=wanted is not None)
        child(self._metrics.experiment_exposures, spec.name, arm).inc()
        self.expose(assignment, stream=bool(request.stream), kind=kind)
        return assignment

    def _assignment(self, live: Live, arm: str, unit: Unit, call: Call, *, chosen: bool) -> Assignment:
        name, hashed = live.spec.name, self._hasher.hash(live.spec.name, unit)
        epoch = live.known.epoch if live.known else None
        shadows = []
        if live.spec.shadows and epoch is not None and not chosen:
            for shadow in live.shadows_of(unit):
                served = self._catalog.get(live.policy_of(shadow), call.caller)
                shadows.append(
                    Assignment(
                        name,
                        shadow,
                        served,
                        hashed,
                        unit.kind,
                        epoch,
                        shadow=True,
                        room=live.spec.shadow_concurrency,
                        scorer=live.spec.scorer,
                    )
                )
        served = self._catalog.get(live.policy_of(arm), call.caller)
        return Assignment(
            name,
            arm,
            served,
            hashed,
            unit.kind,
            epoch,
            chosen=chosen,
            scorer=live.spec.scorer,
            shadows=tuple(shadows),
        )

    def expose(self, assignment: Assignment, *, stream: bool, kind: str) -> None:
        """Record that a unit meets an arm; on disk when this returns."""
        name = exposure_id(assignment)
        if assignment.epoch is None or not self._recent.add(name):
            return
        if not self._writer.put("exposures", exposure_row(assignment, stream=stream, kind=kind)):
            self._recent.discard(name)  # its next request may find room

    def _chosen(self, live: Live, wanted: bytes, call: Call) -> str:
        caller = call.caller
        if caller is None:  # where no keys are needed, one may be shown all the same
            scheme, _, key = call.received.get(b"authorization", b"").decode("latin-1").partition(" ")
            caller = self._callers.find(key.strip()) if scheme.lower() == "bearer" else None
        if caller is None or not (caller.admin or caller.name in live.spec.testers):
            raise Forbidden("'x-keel-arm' is for admin keys, and for keys that the experiment calls testers")
        arm = wanted.decode("latin-1")
        if live.spec.arm(arm) is None:
            names = ", ".join(one.name for one in live.spec.arms)
            raise BadRequest(f"the experiment {live.spec.name!r} has no arm {arm[:64]!r}; it has {names}")
        return arm

    def _record(self, outcome: Outcome) -> None:
        from service.store.completions import row_of

        self._writer.put("completions", row_of(outcome))

    # State

    def replace(self, loaded: Mapping[str, LoadedExperiment]) -> None:
        """Serve these, with the policies that are served now."""
        live = {}
        for name, one in loaded.items():
            before = self.live.get(name)
            live[name] = Live(
                one, self.version(one), before.state if before else None, before.fault if before else ""
            )
        self.live = live
        self._catalog.controls = {name: one.spec.control.policy for name, one in live.items()}
        self.publish()

    def version(self, loaded: LoadedExperiment) -> str:
        """Differs where the experiment, or a policy of it, does."""
        digest = hashlib.sha256(loaded.digest.encode())
        for _, one in loaded.spec.places():
            digest.update(self._catalog.get(one.policy).policy.digest.encode())
        return digest.hexdigest()

    async def follow(self) -> None:
        """Look how the experiments stand. Raises `StoreError`."""
        if not self.live:
            return
        await self._database.open()  # which loads the libraries, off the loop
        from service.store.experiments import load

        async with self._database.read() as connection:
            states = await load(connection, self.live)
        live = {}
        for name, one in self.live.items():
            state = states.get(name)
            fault = ""
            if state is not None and state.unit_key != self.unit_key:
                fault = "its units were hashed under another key: set the same hash_key in all gateways"
            if fault and not one.fault:
                self._log.error("experiment_unusable", experiment=name, reason=fault)
            live[name] = replace(one, state=state, fault=fault)
        if live != self.live:
            self.live = live
            self.publish()

    def lose_touch(self, seconds: float) -> None:
        """The store has not answered for so long. What an arm's limits say, and what people have decided, is
        not known any more then: the control answers, until `follow` has looked again."""
        live = {
            name: replace(one, fault=ADRIFT) if one.known and seconds > STALE_S + one.spec.every_s else one
            for name, one in self.live.items()
        }
        if live != self.live:
            self._log.error("experiments_adrift", seconds=round(seconds), reason=ADRIFT)
            self.live = live
            self.publish()

    def publish(self) -> None:
        """The weights as metrics."""
        self._metrics.experiment_weight.clear()
        for name, one in self.live.items():
            for arm, share in one.shares.items():
                self._metrics.experiment_weight.labels(name, arm).set(share)


def _recorded(generation: Generation) -> bool:
    return generation.assignment is not None and generation.assignment.epoch is not None
