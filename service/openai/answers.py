"""What the API answers, for its description: replies are built as plain objects, and tested against these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """A JSON object of which the main fields are named; engines may add others."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class ErrorObject(BaseModel):
    """What went wrong. `param` names the field of the request, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Guardrails(Answer):
    """What the guards found and did, as far as the policy exposes it; never the text itself."""

    status: Literal["passed", "modified", "blocked"]
    action: str
    policy: dict[str, str]
    checkpoint: str


class ErrorResponse(BaseModel):
    """Every error has this form."""

    error: ErrorObject
    guardrails: Guardrails | None = None


class Usage(Answer):
    """Tokens, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int | None = None
    total_tokens: int


class ChatChoice(Answer):
    """One answer. `finish_reason` is `content_filter` where a guard withheld the rest."""

    index: int
    message: dict[str, Any]
    finish_reason: str | None


class ChatCompletion(Answer):
    """A whole reply. `model` is the policy that was asked for."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    guardrails: Guardrails | None = None


class TextChoice(Answer):
    """One continuation."""

    index: int
    text: str
    finish_reason: str | None


class Completion(Answer):
    """A whole continuation."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
    guardrails: Guardrails | None = None


class EmbeddingList(Answer):
    """The engine's embeddings."""

    object: str
    data: list[dict[str, Any]]
    model: str
    usage: Usage | None = None


class ModerationResult(BaseModel):
    """One text in OpenAI's categories. Categories that no guard can tell apply to no input type."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class ModerationList(BaseModel):
    """One result per text."""

    id: str
    model: str
    results: list[ModerationResult]


class CheckFinding(BaseModel):
    """What was found, and where: offsets in code points into the text as it came, end exclusive."""

    entity_type: str
    start: int
    end: int
    score: float


class CheckedGuard(BaseModel):
    """One guard's word on a text; `categories` holds every score, flagged or not."""

    guard: str
    state: Literal["finished", "failed", "skipped"]
    action: str
    score: float
    categories: dict[str, float]
    findings: list[CheckFinding]
    ms: float = Field(description="Milliseconds; 0 where the verdict was remembered.")
    failure: str | None = None


class CheckResult(BaseModel):
    """One text: what would become of it, and why. `param` and `role` tell where in `messages` it stood."""

    param: str | None = None
    role: str | None = None
    status: Literal["passed", "modified", "blocked"]
    action: str
    content: str
    guards: list[CheckedGuard]


class CheckList(BaseModel):
    """One result per text."""

    object: Literal["check"]
    model: str
    policy_digest: str
    results: list[CheckResult]
