"""`/admin/v1/checkpoints`: what is published, what aliases mean, and making one mean something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Protocol

import orjson
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict

from policies.history import Allowance, How
from policies.registry import Registry
from service.audit import actor_of
from service.catalog import Catalog
from service.hotload.swaps import Outcome, SwapResult, Swaps, Wish

NDJSON = "application/x-ndjson"


class State(Protocol):
    """What these routes ask of the gateway."""

    catalog: Catalog
    registry: Registry
    swaps: Swaps


class CheckpointInfo(BaseModel):
    """A published checkpoint."""

    name: str
    digest: str
    kind: str
    description: str
    aliases: list[str]
    bytes: int


class CheckpointList(BaseModel):
    """All checkpoints of the registry."""

    checkpoints: list[CheckpointInfo]


class MoveInfo(BaseModel):
    """One move of an alias; `how` is point, promote or rollback."""

    ref: str
    previous: str | None
    how: How
    at: datetime


class AliasInfo(BaseModel):
    """What an alias means in the registry, and what is served under it here.

    `served` is null where no policy names it. `refused` says why the two differ.
    """

    alias: str
    ref: str
    served: str | None
    refused: str | None
    policies: list[str]
    history: list[MoveInfo]


class AliasList(BaseModel):
    """All aliases."""

    aliases: list[AliasInfo]


class Promotion(BaseModel):
    """What to promote: `alias` is to mean `ref` (a name or `name@digest`).

    `allow`: what may differ from the former checkpoint. `dry_run`: only look whether it would be refused.
    """

    model_config = ConfigDict(extra="forbid")

    ref: str
    alias: str
    allow: list[Allowance] = []
    dry_run: bool = False


class Rollback(BaseModel):
    """Whose former meaning is to hold again."""

    model_config = ConfigDict(extra="forbid")

    alias: str


class Step(BaseModel):
    """Something that was done or seen on the way."""

    step: str
    seen: str


class Swap(BaseModel):
    """What became of a promotion or a rollback. `ref` is what is served under the alias now."""

    alias: str
    outcome: Outcome
    ref: str
    former: str | None
    seconds: float
    reason: str
    steps: list[Step]

    @classmethod
    def of(cls, result: SwapResult) -> Swap:
        """From the gateway's own account."""
        return cls(
            alias=result.alias,
            outcome=result.outcome,
            ref=result.ref,
            former=result.former,
            seconds=round(result.seconds, 3),
            reason=result.reason,
            steps=[Step(step=step, seen=seen) for step, seen in result.steps],
        )


Accept = Annotated[str, Header(include_in_schema=False)]


def checkpoint_routes(state: State) -> APIRouter:
    """The routes, to be included into the admin's."""
    routes = APIRouter(prefix="/checkpoints")

    @routes.get("")
    async def checkpoints() -> CheckpointList:
        """The registry's checkpoints."""
        return await asyncio.to_thread(_checkpoints, state.registry)

    @routes.get("/aliases")
    async def aliases() -> AliasList:
        """What each alias means, here and in the registry, and what it meant."""
        return await asyncio.to_thread(_aliases, state)

    @routes.post("/promote", response_model=Swap, responses={409: {"model": Swap}})
    async def promote(promotion: Promotion, request: Request, response: Response, accept: Accept = "") -> Any:
        """Verify a checkpoint, load it, try it, and only then let the alias mean it. 409 when it is refused.

        With `Accept: application/x-ndjson` every step is told as it is done, a line each, and the outcome in
        the last line; the status is then 200.
        """
        wish = Wish(
            promotion.alias,
            promotion.ref,
            allow=frozenset(promotion.allow),
            actor=actor_of(request.scope["keel"].caller),
            dry=promotion.dry_run,
        )
        return await _answer(state.swaps, wish, response, accept)

    @routes.post("/rollback", response_model=Swap, responses={409: {"model": Swap}})
    async def rollback(rollback: Rollback, request: Request, response: Response, accept: Accept = "") -> Any:
        """Let an alias mean what it meant before. Told as a promotion is."""
        actor = actor_of(request.scope["keel"].caller)
        wish = Wish(rollback.alias, why="rollback", actor=actor)
        return await _answer(state.swaps, wish, response, accept)

    return routes


async def _answer(swaps: Swaps, wish: Wish, response: Response, accept: str) -> Any:
    told: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    task = swaps.begin(wish, lambda step, seen: _tell(told, loop, step, seen))
    if NDJSON in accept:
        task.add_done_callback(lambda _: told.put_nowait(None))
        return StreamingResponse(_lines(told, task), media_type=NDJSON)
    result = await asyncio.shield(task)
    response.status_code = 200 if result.ok else 409
    return Swap.of(result)


def _tell(
    told: asyncio.Queue[tuple[str, str] | None], loop: asyncio.AbstractEventLoop, step: str, seen: str
) -> None:
    """Steps are told from threads too."""
    loop.call_soon_threadsafe(told.put_nowait, (step, seen))


async def _lines(
    told: asyncio.Queue[tuple[str, str] | None], task: asyncio.Task[SwapResult]
) -> AsyncIterator[bytes]:
    while (step := await told.get()) is not None:
        yield orjson.dumps({"step": step[0], "seen": step[1]}) + b"\n"
    yield Swap.of(task.result()).model_dump_json(exclude={"steps"}).encode() + b"\n"


def _checkpoints(registry: Registry) -> CheckpointList:
    aliases = registry.aliases()
    return CheckpointList(
        checkpoints=[
            CheckpointInfo(
                name=found.name,
                digest=found.digest,
                kind=found.manifest.kind,
                description=found.manifest.description,
                aliases=sorted(alias for alias, ref in aliases.items() if ref == found.ref),
                bytes=sum(file.bytes for file in found.manifest.files),
            )
            for found in registry.checkpoints()
        ]
    )


def _aliases(state: State) -> AliasList:
    pins, refused, every = state.catalog.pins, state.swaps.refused, state.catalog.all()
    return AliasList(
        aliases=[
            AliasInfo(
                alias=alias,
                ref=ref,
                served=pins.get(alias),
                refused=refused[alias][1] if alias in refused else None,
                policies=[served.name for served in every if alias in served.checkpoints],
                history=[
                    MoveInfo(ref=move.ref, previous=move.previous, how=move.how, at=move.at)
                    for move in state.registry.history(alias)
                ],
            )
            for alias, ref in sorted(state.registry.aliases().items())
        ]
    )
