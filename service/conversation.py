"""The texts of a request: where each stands in the JSON, so that it can be examined and replaced in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from guardrails.guard import Channel, Turn
from guardrails.judging import MAX_TURNS
from guardrails.parts import Part, PartResult
from service.openai.errors import BadRequest

TEXT_KEYS = ("text", "refusal", "thinking")  # of content parts, whatever their type
MESSAGE_KEYS = ("content", "refusal", "reasoning", "reasoning_content", "name")
CHARACTERS_A_TOKEN = 4  # of English text, in UTF-8 bytes; OpenAI's rule of thumb for its own tokenizers


CALLS: tuple[tuple[str, Channel, str], ...] = (
    ("function", "tool_arguments", "arguments"),
    ("custom", "tool_input", "input"),
)


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

    @property
    def turn(self) -> Turn:
        """Who said it, and the text as it now stands."""
        return self.part.role, str(self.container[self.key])


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


def turns_of(places: Sequence[Place]) -> tuple[Turn, ...]:
    """The conversation as it now stands, a turn a text."""
    return tuple(place.turn for place in places)


def parts_of(places: Sequence[Place], *, with_turns: bool) -> list[Part]:
    """The texts as they came; with `with_turns` each knows the conversation up to it, as it now stands."""
    if not with_turns:
        return [place.part for place in places]
    turns = turns_of(places)
    return [
        replace(place.part, turns=turns[max(0, index - MAX_TURNS) : index + 1])
        for index, place in enumerate(places)
    ]


def estimated_prompt_tokens(payload: dict[str, Any], *, chat: bool) -> int:
    """About how many tokens a request's prompt has, told from its size: no tokenizer is at hand here.

    Token ids are counted. Everything else counts as its texts do, the names and schemas of tools included.
    """
    prompt = None if chat else payload["prompt"]
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], str):
        return sum(len(item) if isinstance(item, list) else 1 for item in prompt)
    texts = chat_places(payload) if chat else list(_strings(payload, "prompt", "prompt", "user"))
    size = sum(len(place.part.text.encode("utf-8", "replace")) for place in texts)
    size += sum(len(orjson.dumps(payload[key])) for key in ("tools", "functions") if payload.get(key))
    return -(-size // CHARACTERS_A_TOKEN)


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
        for kind, channel, key in CALLS:
            called = call.get(kind) or {}
            if isinstance(call.get("id"), str) and isinstance(called.get("name"), str):
                tool_names[call["id"]] = called["name"]
            yield from _call_place(called, key, role, channel, f"{param}.tool_calls[{index}].{kind}")
    legacy = message.get("function_call") or {}
    yield from _call_place(legacy, "arguments", role, "tool_arguments", f"{param}.function_call")


def _call_place(called: dict[str, Any], key: str, role: str, channel: Channel, param: str) -> Iterator[Place]:
    """What a tool was called with, if with anything."""
    text = called.get(key)
    if isinstance(text, str) and text:
        part = Part(role, text, channel=channel, tool_name=called.get("name"))
        yield Place(part, called, key, f"{param}.{key}")


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
