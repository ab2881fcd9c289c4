"""The texts of a request: where each stands in the JSON, so that it can be examined and replaced in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from guardrails.chain import Part, PartResult
from service.openai.errors import BadRequest

TEXT_KEYS = ("text", "refusal", "thinking")  # of content parts, whatever their type
MESSAGE_KEYS = ("content", "refusal", "reasoning", "reasoning_content", "name")


@dataclass(frozen=True, slots=True)
class Place:
    """A text in the request, and how to put another in its stead. `param` names it for people."""

    part: Part
    container: Any
    key: str | int
    param: str

    def put(self, text: str) -> None:
        """Replace the text."""
        self.container[self.key] = text


def chat_places(payload: dict[str, Any]) -> list[Place]:
    """Every text of a chat request: messages, their parts and tool calls, and documents beside them."""
    tool_names: dict[str, str] = {}
    places: list[Place] = []
    for index, message in enumerate(payload["messages"]):
        places += _message_places(message, f"messages[{index}]", tool_names)
    if payload.get("documents") is not None:
        places += _strings(payload, "documents", "documents", "tool")
    return places


def completion_places(payload: dict[str, Any]) -> list[Place]:
    """Every text of a plain completion request.

    Raises `BadRequest` for token ids: what they spell is known to the engine only, so no guard can look.
    """
    prompt = payload["prompt"]
    if isinstance(prompt, list) and any(not isinstance(item, str) for item in prompt):
        raise BadRequest(
            "this policy examines prompts, and token ids can't be examined: send the prompt as text",
            param="prompt",
        )
    if payload.get("prompt_embeds") is not None:
        raise BadRequest(
            "this policy examines prompts, and embeddings can't be examined: send the prompt as text",
            param="prompt_embeds",
        )
    places = list(_strings(payload, "prompt", "prompt", "user"))
    if isinstance(payload.get("suffix"), str):
        places.append(Place(Part("user", payload["suffix"]), payload, "suffix", "suffix"))
    return places


def replace_texts(places: Sequence[Place], results: Sequence[PartResult]) -> bool:
    """Put the guards' texts in place; True if any differs."""
    changed = False
    for place, result in zip(places, results, strict=True):
        if result.changed:
            place.put(result.text)
            changed = True
    return changed


def _message_places(message: dict[str, Any], param: str, tool_names: dict[str, str]) -> Iterator[Place]:
    role = "tool" if message["role"] == "function" else message["role"]
    tool_name = (
        tool_names.get(message.get("tool_call_id") or "", message.get("name")) if role == "tool" else None
    )
    for key in MESSAGE_KEYS:
        value = message.get(key)
        if isinstance(value, str) and value:
            yield Place(Part(role, value, tool_name=tool_name), message, key, f"{param}.{key}")
    content = message.get("content")
    if isinstance(content, list):
        for index, piece in enumerate(content):
            for key in TEXT_KEYS:
                if isinstance(piece.get(key), str) and piece[key]:
                    part = Part(role, piece[key], tool_name=tool_name)
                    yield Place(part, piece, key, f"{param}.content[{index}].{key}")
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or {}
        if isinstance(call.get("id"), str) and isinstance(function.get("name"), str):
            tool_names[call["id"]] = function["name"]
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments:
            part = Part(role, arguments, channel="tool_arguments", tool_name=function.get("name"))
            yield Place(part, function, "arguments", f"{param}.tool_calls[{index}].function.arguments")


def _strings(container: Any, key: str | int, param: str, role: str) -> Iterator[Place]:
    """All strings in and below `container[key]`."""
    stack: list[tuple[Any, str | int, str]] = [(container, key, param)]
    while stack:
        holder, at, name = stack.pop()
        value = holder[at]
        if isinstance(value, str):
            if value:
                yield Place(Part(role, value), holder, at, name)
        elif isinstance(value, list):
            stack += [(value, i, f"{name}[{i}]") for i in range(len(value) - 1, -1, -1)]
        elif isinstance(value, dict):
            stack += [(value, k, f"{name}.{k}") for k in reversed(value)]
