"""`/admin/v1`: for whoever runs the gateway, behind the admin key."""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from policies.load import ReloadOutcome
from service.api.admin_checkpoints import State as CheckpointState
from service.api.admin_checkpoints import checkpoint_routes
from service.api.admin_definitions import HasHouse
from service.api.admin_drift import State as DriftState
from service.api.admin_drift import drift_routes
from service.api.admin_experiments import experiment_routes
from service.api.admin_feedback import State as FeedbackState
from service.api.admin_feedback import feedback_routes
from service.api.admin_policies import policy_routes
from service.api.admin_reviews import State as ReviewState
from service.api.admin_reviews import review_routes
from service.audit import actor_of


class State(CheckpointState, DriftState, FeedbackState, HasHouse, ReviewState, Protocol):
    """What these routes ask of the gateway."""

    last_reload: ReloadResult

    async def reload_policies(self, actor: str = ...) -> ReloadResult: ...


class ReloadResult(BaseModel):
    """What the last look at the policy files changed. `errors` name file, line and column.

    `ok` is false when anything was refused; what was served before is then served still.
    """

    ok: bool = True
    added: list[str] = []
    changed: list[str] = []
    removed: list[str] = []
    errors: list[str] = []

    @classmethod
    def of(cls, outcome: ReloadOutcome) -> ReloadResult:
        """From the library's own account."""
        return cls(
            ok=outcome.ok,
            added=list(outcome.added),
            changed=list(outcome.changed),
            removed=list(outcome.removed),
            errors=[str(fault) for fault in outcome.faults],
        )


class PolicyInfo(BaseModel):
    """A policy as it is served now; with `tenant`, that tenant's variant of it."""

    name: str
    digest: str
    path: str | None
    checkpoint: str
    tenant: str | None = None


class PolicyList(BaseModel):
    """All policies, and how the last reload went."""

    policies: list[PolicyInfo]
    last_reload: ReloadResult


def admin_routes(state: State) -> APIRouter:
    """The routes, to be included into the site."""
    routes = APIRouter(prefix="/admin/v1", tags=["admin"])

    @routes.get("/policies")
    async def policies() -> PolicyList:
        """The policies that are served, with their digests."""
        found = [
            PolicyInfo(
                name=served.name,
                digest=served.policy.digest,
                path=str(served.policy.path) if served.policy.path else None,
                checkpoint=served.target.checkpoint,
                tenant=served.policy.tenant.tenant if served.policy.tenant else None,
            )
            for served in [*state.catalog.all(), *state.catalog.variants()]
        ]
        return PolicyList(policies=found, last_reload=state.last_reload)

    @routes.post("/policies/reload", responses={409: {"model": ReloadResult}})
    async def reload(request: Request, response: Response) -> ReloadResult:
        """Read the policy files again. 409 when something in them was refused."""
        result = await state.reload_policies(actor_of(request.scope["keel"].caller))
        response.status_code = 200 if result.ok else 409
        return result

    routes.include_router(checkpoint_routes(state))
    routes.include_router(drift_routes(state))
    routes.include_router(experiment_routes(state))
    routes.include_router(policy_routes(state))
    routes.include_router(feedback_routes(state))
    routes.include_router(review_routes(state))
    return routes
