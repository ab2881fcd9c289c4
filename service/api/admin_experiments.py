"""`/admin/v1/experiments`: how experiments stand, and what people decide about them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.admin_definitions import HasHouse, definition_routes, tried
from service.audit import actor_of
from service.experiments.control import Control
from service.experiments.state import State


class Decision(BaseModel):
    """Why, for the history; `arm` for `promote`; `step` (from 1) for `ramp`, for `approve` the one meant."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=500)] = ""
    arm: Annotated[str, Field(max_length=64)] | None = None
    step: Annotated[int, Field(ge=1, le=20)] | None = None


class Decided(BaseModel):
    """How the experiment stands now."""

    name: str
    status: str
    step: int
    epoch: int
    shares: dict[str, float]
    reason: str
    revision: int

    @classmethod
    def of(cls, state: State) -> Decided:
        return cls(**{name: getattr(state, name) for name in cls.model_fields})


class ExperimentList(BaseModel):
    """All experiments, each as `GET /admin/v1/experiments/{name}` shows it, without `looks` and `history`.

    Of those that were made by this API, `refused` says which are not served here as they say, and why;
    `archived` are those that are over. `errors` tell what is wrong with files, which are not followed then.
    """

    experiments: list[dict[str, Any]]
    refused: dict[str, str]
    errors: list[str]
    archived: list[str]


Action = Literal["approve", "promote", "rollback", "stop", "ramp"]


def experiment_routes(state: HasHouse) -> APIRouter:
    """The routes, to be included into the admin's."""
    routes = APIRouter(prefix="/experiments")

    @routes.get("")
    async def experiments() -> ExperimentList:
        """All experiments: arms, shares, the latest look."""
        house = state.house
        found = await asyncio.gather(
            *(tried(house.control.overview(name, looks=False)) for name in sorted(house.experiments.live))
        )
        made = house.definitions
        archived = [name for name, one in made.known.items() if one.archived]
        return ExperimentList(
            experiments=found, refused=dict(made.faults), errors=house.faults, archived=archived
        )

    @routes.get("/{name}", response_model=dict[str, Any])
    async def experiment(name: str) -> Response:
        """One experiment, with intervals over time and its history."""
        found = await tried(state.house.control.overview(name))
        body = await asyncio.to_thread(orjson.dumps, found)  # a megabyte, with many looks
        return Response(body, media_type="application/json")

    @routes.post("/{name}/{action}")
    async def decide(
        name: str, action: Action, request: Request, decision: Decision | None = None
    ) -> Decided:
        """Approve the ramp's next step, promote an arm, roll back, stop, or ramp anew."""
        actor = actor_of(request.scope["keel"].caller)
        changed = _act(state.house.control, name, action, actor, decision or Decision())
        return Decided.of(await tried(changed))

    routes.include_router(definition_routes(state))
    return routes


def _act(control: Control, name: str, action: Action, actor: str, decision: Decision) -> Awaitable[State]:
    reason = decision.reason or f"{action} by {actor}"
    step = None if decision.step is None else decision.step - 1
    match action:
        case "approve":
            return control.approve(name, actor, reason, step)
        case "promote":
            return control.promote(name, actor, reason, decision.arm)
        case "rollback":
            return control.roll_back(name, actor, reason)
        case "stop":
            return control.stop(name, actor, reason)
        case "ramp":
            return control.ramp(name, actor, reason, step)
