"""The OpenAPI document: the raw endpoints', from the models that validate them, beside FastAPI's own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from policies.experiment import ExperimentSpec
from service.comparisons import ComparisonReceipt, JudgementRequest
from service.feedback import FeedbackReceipt, FeedbackRequest
from service.openai import types as wire
from service.openai.answers import (
    ChatCompletion,
    CheckList,
    Completion,
    EmbeddingList,
    ErrorResponse,
    ModerationList,
)

REF = "#/components/schemas/{model}"
SECURITY = "apiKey"

# What the edge may answer to any call, and what only calls to the API itself can meet.
EDGE_ERRORS = {403: "Not from this origin or by this host name."}
API_ERRORS = {
    400: "The request can't be understood, or an input guard blocked it (code `content_filter`).",
    401: "No API key, or an unknown one.",
    404: "No such model (code `model_not_found`).",
    408: "The body did not arrive in time.",
    409: "The `Idempotency-Key` came with another body.",
    413: "The body is too large.",
    429: "A rate limit of this key is reached; see `Retry-After`.",
    502: "The engine failed.",
    503: "Not ready, overloaded or going away; see `Retry-After`.",
    504: "The engine did not answer in time.",
}
ADMIN_ERRORS = {
    400: "The request can't be understood.",
    401: API_ERRORS[401],
    403: "Not an admin key.",
    404: "What it names isn't there.",
    409: "It can't be done as things stand.",
    500: "The registry can't be read.",
    503: "The store can't be used.",
}

Operation = tuple[str, str, str, type[BaseModel], type[BaseModel], bool]
OPERATIONS: tuple[Operation, ...] = (
    ("/v1/chat/completions", "chat", "Answer a conversation", wire.ChatRequest, ChatCompletion, True),
    ("/v1/completions", "completions", "Continue a text", wire.CompletionRequest, Completion, True),
    ("/v1/embeddings", "embeddings", "Embed texts", wire.EmbeddingRequest, EmbeddingList, False),
    (
        "/v1/moderations",
        "guards",
        "Score texts in OpenAI's categories",
        wire.ModerationRequest,
        ModerationList,
        False,
    ),
    ("/v1/feedback", "feedback", "Say how good a reply was", FeedbackRequest, FeedbackReceipt, False),
    (
        "/v1/comparisons",
        "feedback",
        "Say which of two replies is better",
        JudgementRequest,
        ComparisonReceipt,
        False,
    ),
    ("/v1/checks", "guards", "Examine texts against a policy", wire.CheckRequest, CheckList, False),
)


def describe(site: FastAPI, version: str) -> dict[str, Any]:
    """The whole document."""
    document = get_openapi(
        title="Keel",
        version=version,
        summary="A gateway that keeps a language model aligned while it answers.",
        routes=site.routes,
        openapi_version="3.1.0",
    )
    models: list[type[BaseModel]] = [ErrorResponse, ExperimentSpec]
    for _, _, _, request, answer, _ in OPERATIONS:
        models += [request, answer]
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["schemas"].pop("HTTPValidationError", None)
    components["schemas"].pop("ValidationError", None)
    components["securitySchemes"] = {SECURITY: {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _add_errors(operation, path)
    for entry in OPERATIONS:
        document["paths"][entry[0]] = {"post": _operation(*entry)}
    return document


def _operation(
    path: str, tag: str, summary: str, request: type[BaseModel], answer: type[BaseModel], streams: bool
) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _ref(answer)}}
    if streams:
        description = "With `stream`: a chunk as JSON in each event's data, and `[DONE]` in the last."
        data = {"type": "string", "description": description}
        content["text/event-stream"] = {"schema": {"type": "object", "properties": {"data": data}}}
    operation: dict[str, Any] = {
        "operationId": path.removeprefix("/v1/").replace("/", "_"),
        "tags": [tag],
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
        "responses": {"200": {"description": answer.__doc__, "content": content}},
    }
    _add_errors(operation, path)
    return operation


def _add_errors(operation: dict[str, Any], path: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own; here it is a 400
    errors = dict(EDGE_ERRORS)
    if path.startswith("/v1/"):
        errors |= API_ERRORS
        operation["security"] = [{}, {SECURITY: []}]
    elif path.startswith("/admin/"):
        errors |= ADMIN_ERRORS
        operation["security"] = [{SECURITY: []}]
    for status, description in errors.items():
        answer = {
            "description": description,
            "content": {"application/json": {"schema": _ref(ErrorResponse)}},
        }
        responses.setdefault(str(status), answer)


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}
