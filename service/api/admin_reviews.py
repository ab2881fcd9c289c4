"""`/admin/v1/reviews`: what guards withheld, to be upheld or overturned."""

from __future__ import annotations

import asyncio
from typing import Literal, Protocol

from fastapi import APIRouter, Request, Response

from service.reviews import Decision, ReviewItem, ReviewList, Reviews, Status


class State(Protocol):
    """What these routes ask of the gateway."""

    reviews: Reviews


def review_routes(state: State) -> APIRouter:
    """The routes, to be included into the admin's."""
    routes = APIRouter()

    @routes.get("/reviews", response_model=ReviewList)
    async def reviews(
        status: Status = "open", policy: str | None = None, stage: Literal["input", "output"] | None = None
    ) -> Response:
        """Withheld items: the oldest open ones, or the latest that were decided."""
        found = await state.reviews.list(status, policy, stage)
        return Response(await asyncio.to_thread(found.model_dump_json), media_type="application/json")

    @routes.post("/reviews/{name}")
    async def decide(name: str, decision: Decision, request: Request) -> ReviewItem:
        """Uphold or overturn an item, or open it again."""
        return await state.reviews.decide(name, decision, request.scope["keel"].caller)

    return routes
