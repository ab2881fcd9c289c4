"""`/admin/v1/experiments/{name}`: experiments that are made, replaced and archived here, without a file."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import orjson
import yaml
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from policies.document import MAX_BYTES, Document, parse_document
from policies.errors import PolicyError
from policies.experiment import ExperimentSpec, read_experiment
from service.audit import actor_of
from service.experiments.definitions import Expected
from service.experiments.house import House
from service.experiments.state import NotPossible
from service.openai.errors import BadRequest, Conflict, Unavailable
from service.store.database import StoreError

T = TypeVar("T")
SPEC = {"schema": {"$ref": f"#/components/schemas/{ExperimentSpec.__name__}"}}
BODY = {"requestBody": {"required": True, "content": {"application/json": SPEC, "application/yaml": SPEC}}}


class HasHouse(Protocol):
    """What these routes ask of the gateway."""

    house: House


class DefinitionText(BaseModel):
    """An experiment as the API made it: `yaml` is what a file would say."""

    name: str
    revision: int
    archived: bool
    actor: str
    at: float
    yaml: str


class Defined(BaseModel):
    """What became of it. `shares` are what the arms begin with; `dry_run` says that nothing was done."""

    name: str
    outcome: Literal["created", "replaced", "unchanged", "archived"]
    revision: int
    shares: dict[str, float] = {}
    dry_run: bool = False


def definition_routes(state: HasHouse) -> APIRouter:
    """The routes, to be included into those of experiments."""
    routes = APIRouter()

    @routes.get("/{name}/definition")
    async def definition(name: str, response: Response) -> DefinitionText:
        """What the API was told, archived ones included; `ETag` is its revision."""
        await tried(state.house.definitions.follow())
        found = state.house.definitions.get(name)
        response.headers["etag"] = f'"{found.revision}"'
        text = yaml.safe_dump(found.spec, sort_keys=False, allow_unicode=True, width=100)
        told = {key: getattr(found, key) for key in ("name", "revision", "archived", "actor", "at")}
        return DefinitionText(**told, yaml=text)

    @routes.put("/{name}", openapi_extra=BODY, responses={201: {"model": Defined}})
    async def put(name: str, request: Request, response: Response, dry_run: bool = False) -> Defined:
        """Make an experiment, or replace the one that `If-Match` names by its revision (or `*`).

        The body is what a file would say, as JSON or YAML. With `dry_run` it is only looked at.
        """
        spec = await _read(name, request, state.house)
        expected, actor = _expected(request), actor_of(request.scope["keel"].caller)
        done = await tried(state.house.put(spec, expected, actor, dry_run=dry_run))
        revision = done.definition.revision
        if not dry_run:
            response.headers["etag"] = f'"{revision}"'
            response.status_code = 201 if done.outcome == "created" else 200
        return Defined(
            name=name, outcome=done.outcome, revision=revision, shares=spec.shares(), dry_run=dry_run
        )

    @routes.delete("/{name}")
    async def archive(name: str, request: Request) -> Defined:
        """Serve an experiment that was made here no more. What was measured stays, and so does its name."""
        actor = actor_of(request.scope["keel"].caller)
        done = await tried(state.house.archive(name, _expected(request), actor))
        return Defined(name=name, outcome=done.outcome, revision=done.definition.revision)

    return routes


async def tried(work: Awaitable[T]) -> T:
    """`work`, whose own errors become the API's."""
    try:
        return await work
    except NotPossible as error:
        raise Conflict(str(error)) from None
    except StoreError as error:
        raise Unavailable(str(error), code="store_unavailable") from None


def _expected(request: Request) -> Expected:
    given = request.headers.get("if-match")
    if given is None:
        return None
    if given.strip() == "*":
        return "any"
    revision = given.strip().removeprefix("W/").strip('"')
    known = revision.isascii() and revision.isdecimal() and len(revision) < 10
    return int(revision) if known else -1  # which is nobody's


async def _read(name: str, request: Request, house: House) -> ExperimentSpec:
    """The body's experiment. Raises `BadRequest`, with all that is wrong under `problems`."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            raise BadRequest(f"an experiment of more than {MAX_BYTES // 1024} KiB is none")
    as_json = "json" in request.headers.get("content-type", "")
    path = Path("body")
    try:
        document = _json(bytes(body)) if as_json else parse_document(_text(bytes(body)), path)
        spec = await asyncio.to_thread(read_experiment, document, path, house.policies(), house.check)
    except PolicyError as error:
        problems: list[dict[str, Any]] = [
            {"message": fault.message}
            if as_json
            else {"line": fault.line, "column": fault.column, "message": fault.message}
            for fault in error.faults
        ]
        said = "; ".join(fault.message for fault in error.faults)
        raise BadRequest(f"not an experiment: {said}", extra={"problems": problems}) from None
    if spec.name != name:
        raise BadRequest(f"the path names {name[:64]!r} and the body {spec.name!r}", param="name")
    return spec


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8") from None


def _json(body: bytes) -> Document:
    try:
        return Document(orjson.loads(body), {}, {})
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
