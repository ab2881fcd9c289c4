"""`/v1/comparisons`: two replies to one prompt, for a rater. (`/v1/feedback` is an endpoint of `app.py`.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from service.comparisons import ComparisonAnswer, Comparisons


def comparison_routes(comparisons: Comparisons) -> APIRouter:
    """The route that shows; judging is `JsonEndpoint`'s."""
    routes = APIRouter(tags=["feedback"])

    @routes.get("/v1/comparisons/next", response_model=ComparisonAnswer)
    async def next_pair(request: Request) -> Mapping[str, Any]:
        """The pair that this rater should compare next."""
        return await comparisons.next(request.scope["keel"])

    return routes
