"""`/admin/v1/policies/{name}`: a policy, or a tenant's variant of one, as it is served, to be read."""

from __future__ import annotations

from typing import Protocol

import yaml
from fastapi import APIRouter
from pydantic import BaseModel

from service.catalog import Catalog


class State(Protocol):
    """What these routes ask of the gateway."""

    catalog: Catalog


class PolicyText(BaseModel):
    """A policy, with what it says as YAML: what was loaded, not what the file may say by now.

    `tenant` is whose variant it is, if it is one.
    """

    name: str
    tenant: str | None
    digest: str
    path: str | None
    checkpoint: str
    yaml: str


def policy_routes(state: State) -> APIRouter:
    """The route, to be included into the admin's."""
    routes = APIRouter()

    @routes.get("/policies/{name}")
    async def policy(name: str) -> PolicyText:
        """One policy, with its whole text; a tenant's variant by its name, `policy#tenant`."""
        served = state.catalog.get_exactly(name)
        tenant = served.policy.tenant
        said = served.spec.model_dump(mode="json", exclude_unset=True)
        return PolicyText(
            name=served.name,
            tenant=tenant.tenant if tenant else None,
            digest=served.policy.digest,
            path=str(served.policy.path) if served.policy.path else None,
            checkpoint=served.target.checkpoint,
            yaml=yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100),
        )

    return routes
