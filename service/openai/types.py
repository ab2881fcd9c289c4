"""The requests of OpenAI's API, as far as the gateway has to understand them.

Fields that Keel looks at are typed; all others are kept as they came and reach the engine, unknown ones
included, for an engine may know more than this file. The same models describe the API in the OpenAPI
document. Sources: OpenAI's API reference, and vLLM's extensions of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, StringConstraints

MAX_MESSAGES = 10_000
MAX_CHOICES = 128


def _integral(value: Any) -> Any:
    """JSON knows one kind of number: 2.0 is the integer 2 (JSON Schema 2020-12, section 6.1.1)."""
    return int(value) if type(value) is float and value.is_integer() else value


Str = Annotated[str, Strict()]
Bool = Annotated[bool, Strict()]
Integer = Annotated[
    int, Strict(), BeforeValidator(_integral), Field(ge=-(2**63), le=2**63 - 1)  # what engines can count with
]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
TokenId = Annotated[Integer, Field(ge=0)]
ModelName = Annotated[
    str, Strict(), StringConstraints(min_length=1), Field(description="A policy's name, see GET /v1/models.")
]


class Wire(BaseModel):
    """A JSON object of which we know some fields and keep the others."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class StreamOptions(Wire):
    """How a stream ends."""

    include_usage: Bool | None = Field(None, description="Send a last chunk with the token usage.")


class ContentPart(Wire):
    """A part of a message's content. Text parts are examined; images, audio and files are passed on."""

    type: Str
    text: Str | None = None
    refusal: Str | None = None


class FunctionCall(Wire):
    """What a tool was called with; `arguments` is JSON in a string."""

    name: Str | None = None
    arguments: Str | None = None


class CustomCall(Wire):
    """What a custom tool was called with; `input` is any text."""

    name: Str | None = None
    input: Str | None = None


class ToolCall(Wire):
    """A call that the assistant made in an earlier turn."""

    id: Str | None = None
    type: Str | None = None
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class Message(Wire):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Str | list[ContentPart] | None = None
    name: Str | None = None
    refusal: Str | None = None
    reasoning: Str | None = None
    reasoning_content: Str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: Str | None = None


class FunctionDefinition(Wire):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: Str
    description: Str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Wire):
    """A tool that the model may use."""

    type: Str
    function: FunctionDefinition | None = None


class Generation(Wire):
    """What chat and plain completions have in common."""

    model: ModelName
    stream: Bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Integer, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[Integer, Field(ge=0)] | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    stop: Str | list[Str] | None = None
    seed: Integer | None = None
    user: Str | None = None


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[Integer, Field(ge=0)] | None = None
    logprobs: Bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class CompletionRequest(Generation):
    """`POST /v1/completions`: plain continuation of a text, several texts, or token ids."""

    prompt: Str | list[Str] | list[TokenId] | list[list[TokenId]]
    suffix: Str | None = None
    echo: Bool | None = None
    logprobs: Annotated[Integer, Field(ge=0)] | None = None
    best_of: Annotated[Integer, Field(ge=1)] | None = None


class EmbeddingRequest(Wire):
    """`POST /v1/embeddings`."""

    model: ModelName
    input: Str | list[Str] | list[TokenId] | list[list[TokenId]]


class ModerationRequest(Wire):
    """`POST /v1/moderations`. `model` is the policy whose guards answer; there is a default."""

    input: Str | Annotated[list[Str | ContentPart], Field(min_length=1, max_length=1_000)]
    model: ModelName | None = None


class CheckRequest(BaseModel):
    """`POST /v1/checks`: examine a conversation (`messages`) or texts (`input`); nothing is generated.

    `messages` are examined as input, in the roles that the policy names. `stage` says as what `input` is
    examined; `prompt` is what an output's text answers.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: ModelName
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    input: Str | Annotated[list[Str], Field(min_length=1, max_length=1_000)] | None = None
    stage: Literal["input", "output"] = "input"
    prompt: Str = ""
