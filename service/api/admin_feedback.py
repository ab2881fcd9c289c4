"""`/admin/v1/feedback`: how much there is, and how far raters agree."""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter
from pydantic import BaseModel

from service.openai.errors import Unavailable
from service.store.database import Database, StoreError


class State(Protocol):
    """What these routes ask of the gateway."""

    database: Database


class Agreement(BaseModel):
    """Krippendorff's alpha over what several raters judged; None where nothing was."""

    alpha: float | None
    several: int
    judged: int


class FeedbackSummary(BaseModel):
    """Comparisons by raters, and thumbs from callers."""

    judgements: int
    skipped: int
    raters: int
    pairs: Agreement
    thumbs: Agreement


def feedback_routes(state: State) -> APIRouter:
    """The route, to be included into the admin's."""
    routes = APIRouter()

    @routes.get("/feedback")
    async def feedback() -> FeedbackSummary:
        """Counts and agreement."""
        from service.export import agreement

        try:
            return FeedbackSummary.model_validate(await agreement(state.database))
        except StoreError as error:
            raise Unavailable(f"feedback can't be read: {error}", code="store_failed") from error

    return routes
