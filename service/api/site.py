"""What isn't hot, on FastAPI: health, metrics, the models, the admin's routes, the API's description."""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from service.api.admin import State as AdminState
from service.api.admin import admin_routes
from service.api.feedback import comparison_routes
from service.catalog import Served
from service.comparisons import Comparisons
from service.openai.errors import ApiError, BadRequest, MethodNotAllowed, NotFound
from service.openapi import describe

STARTED = int(time.time())


class State(AdminState, Protocol):
    """What these routes ask of the gateway."""

    comparisons: Comparisons

    def unready(self) -> dict[str, str]:
        """What keeps the gateway from serving, by component; empty when nothing does."""
        ...

    async def metrics_page(self) -> bytes:
        """The Prometheus exposition, the managed engine's included."""
        ...


class Live(BaseModel):
    """The process runs and its loop turns."""

    status: str = "alive"


class Ready(BaseModel):
    """Whether requests are served, and if not, what is missing."""

    status: str
    reasons: dict[str, str] = {}


class Model(BaseModel):
    """A policy, in the form of OpenAI's model objects."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "keel"
    description: str
    checkpoint: str
    policy_digest: str
    input_guards: list[str]
    output_guards: list[str]


class ModelList(BaseModel):
    """All policies."""

    object: str = "list"
    data: list[Model]


def make_site(state: State) -> FastAPI:
    """The application; its own error pages are never seen."""
    site = FastAPI(title="Keel", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    @site.get("/health/live", tags=["health"])
    async def live() -> Live:
        """Liveness: answers as long as the process does."""
        return Live()

    @site.get("/health/ready", tags=["health"], responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        """Readiness: 200 while requests are served, else 503 with the reasons."""
        reasons = state.unready()
        response.status_code = 503 if reasons else 200
        return Ready(status="unready" if reasons else "ready", reasons=reasons)

    @site.get("/metrics", tags=["health"], response_class=Response)
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(await state.metrics_page(), media_type=CONTENT_TYPE_LATEST)

    @site.get("/v1/models", tags=["models"])
    async def models() -> ModelList:
        """Every policy is a model, and so is every experiment, in the form of its control."""
        data = [_model(served) for served in state.catalog.all()]
        data += [_model(state.catalog.get(name), name) for name in sorted(state.catalog.controls)]
        return ModelList(data=data)

    @site.get("/v1/models/{model}", tags=["models"])
    async def model(model: str) -> Model:
        """One policy."""
        return _model(state.catalog.get(model), model)

    site.include_router(admin_routes(state))
    site.include_router(comparison_routes(state.comparisons))
    document = describe(site, importlib.metadata.version("keel"))

    @site.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        """This API's description."""
        return document

    _speak_openai(site)
    return site


def _model(served: Served, name: str | None = None) -> Model:
    return Model(
        id=name or served.name,
        created=STARTED,
        description=served.spec.description,
        checkpoint=served.target.checkpoint,
        policy_digest=served.policy.digest,
        input_guards=[guard.name for guard in served.guards.input],
        output_guards=[guard.name for guard in served.guards.output],
    )


def _speak_openai(site: FastAPI) -> None:
    """Give the framework's own errors OpenAI's form."""

    def answer(error: ApiError) -> Response:
        headers = {name.decode(): value.decode() for name, value in error.headers}
        return Response(
            error.body(), status_code=error.status, headers=headers, media_type="application/json"
        )

    @site.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return answer(error)

    @site.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first: dict[str, Any] = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        if not field:
            return answer(
                BadRequest("the body must be a JSON object, sent as 'Content-Type: application/json'")
            )
        return answer(BadRequest(f"{field}: {first['msg']}", param=field))

    @site.exception_handler(Exception)  # which goes on from here to the gateway's log
    async def unexpected(request: Request, _: Exception) -> Response:
        name = request.scope["keel"].id
        return answer(ApiError(f"an internal error occurred; the gateway's log has it under {name}"))

    @site.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 405:
            allowed = tuple((error.headers or {}).get("Allow", "GET").split(", "))
            return answer(MethodNotAllowed(request.method, path, allowed))
        if error.status_code == 404:
            return answer(NotFound(f"there is nothing at {path[:200]}"))
        return answer(BadRequest(str(error.detail)))
