"""`/admin/v1/drift`: what has moved away from its reference, and how to begin a new one."""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter, Request
from pydantic import BaseModel

from service.audit import AuditLog, actor_of
from service.catalog import Catalog
from service.telemetry.drift import Drift


class State(Protocol):
    """What these routes ask of the gateway."""

    catalog: Catalog
    audit: AuditLog
    drift: Drift


class SignalInfo(BaseModel):
    """One signal. `psi` and `ks` are null while there are too few samples."""

    policy: str
    signal: str
    reference_samples: int
    reference_complete: bool
    window_samples: int
    psi: float | None
    ks: float | None


class DriftList(BaseModel):
    """All signals, as the last look found them."""

    signals: list[SignalInfo]


class DriftReset(BaseModel):
    """Whose references begin anew; all policies' without a name."""

    policy: str | None = None


class DriftWasReset(BaseModel):
    """The policies whose references begin anew at the next look."""

    policies: list[str]


def drift_routes(state: State) -> APIRouter:
    """The routes, to be included among the admin's."""
    routes = APIRouter(prefix="/drift")

    @routes.get("")
    async def drift() -> DriftList:
        """Every signal's distance from its reference."""
        return DriftList(
            signals=[
                SignalInfo(
                    policy=one.policy,
                    signal=one.signal,
                    reference_samples=one.reference_samples,
                    reference_complete=one.complete,
                    window_samples=one.window_samples,
                    psi=one.psi,
                    ks=one.ks,
                )
                for one in state.drift.found()
            ]
        )

    @routes.post("/reset")
    async def reset(request: Request, what: DriftReset) -> DriftWasReset:
        """Begin new references: what comes from now on is what is normal."""
        if what.policy is not None:
            state.catalog.get(what.policy)
        names = state.drift.reset(what.policy)
        actor = actor_of(request.scope["keel"].caller)
        state.audit.record(
            "drift.reset", actor=actor, subject=what.policy or "*", details={"policies": names}
        )
        return DriftWasReset(policies=names)

    return routes
