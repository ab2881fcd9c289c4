"""A reply as guards see it: texts in channels, per choice; how chunks come apart and together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from guardrails.guard import Channel
from service.openai.errors import UpstreamFailed
from service.openai.logprobs import (
    Aligner,
    Entry,
    chat_entries,
    completion_entries,
    render_chat,
    render_completion,
)

LEGACY_CALL = -1  # the index under which `function_call` is kept beside `tool_calls`
REASONING_FIELDS = ("reasoning", "reasoning_content")


class Key(NamedTuple):
    """A channel of a choice: tool calls are told apart by their index."""

    channel: Channel
    number: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """What a channel of a choice said next."""

    choice: int
    key: Key
    text: str
    entries: tuple[Entry, ...] = ()


@dataclass(slots=True)
class ChoiceState:
    """What is known of one choice while it streams."""

    index: int
    role: str | None = None
    role_sent: bool = False
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)  # what a tool call is, but its arguments
    calls_sent: set[int] = field(default_factory=set)
    reasoning_field: str = REASONING_FIELDS[0]
    finish: dict[str, Any] | None = None  # finish_reason and, from vLLM, stop_reason
    closed: bool = False
    aligner: Aligner = field(default_factory=Aligner)

    def finished(self) -> bool:
        """Whether the engine has said why it ended."""
        return self.finish is not None


class ChatShape:
    """Chat completions: `delta` in chunks, `message` in whole replies, alike in what they hold."""

    object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def take_apart(self, state: ChoiceState, choice: dict[str, Any]) -> list[Piece]:
        """The texts of a choice, in the order in which they are examined; the rest goes into `state`."""
        said = choice.get("delta") or choice.get("message") or {}
        state.role = state.role or said.get("role")
        texts: list[tuple[Key, str]] = []
        for name in REASONING_FIELDS:
            if said.get(name):
                state.reasoning_field = name
                texts.append((Key("reasoning"), said[name]))
                break
        if said.get("content"):
            texts.append((Key("content"), said["content"]))
        if said.get("refusal"):
            texts.append((Key("refusal"), said["refusal"]))
        calls = [(call.get("index", i), call) for i, call in enumerate(said.get("tool_calls") or ())]
        if said.get("function_call"):
            calls.append((LEGACY_CALL, {"function": said["function_call"]}))
        for index, call in calls:
            texts.append((Key("tool_arguments", index), _note_call(state, index, call)))
        entries = chat_entries((choice.get("logprobs") or {}).get("content"))
        note_finish(state, choice)
        return _pieces(state, texts, entries)

    def delta(self, state: ChoiceState, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The part of a choice that holds these texts, of one channel or of several."""
        delta: dict[str, Any] = {}
        if not state.role_sent and state.role is not None:
            delta["role"] = state.role
            state.role_sent = True
        for piece in pieces:
            if piece.key.channel == "reasoning":
                delta[state.reasoning_field] = delta.get(state.reasoning_field, "") + piece.text
            elif piece.key.channel == "tool_arguments":
                _add_call(state, delta, piece)
            else:
                delta[piece.key.channel] = delta.get(piece.key.channel, "") + piece.text
        entries = [entry for piece in pieces for entry in piece.entries]
        return {"delta": delta, "logprobs": render_chat(entries)}

    def message(self, state: ChoiceState, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A whole choice of a reply that was not streamed."""
        part = self.delta(state, pieces)
        message = {"role": state.role or "assistant", "content": None, **part["delta"]}
        for call in message.get("tool_calls", ()):
            del call["index"]
        return {"message": message, "logprobs": part["logprobs"]}

    def text(self, text: str) -> dict[str, Any]:
        """A `delta` with nothing but this text."""
        return {"delta": {"role": "assistant", "content": text}, "logprobs": None}

    def whole(self, text: str) -> dict[str, Any]:
        """A `message` with nothing but this text."""
        return {"message": {"role": "assistant", "content": text}, "logprobs": None}


class CompletionShape:
    """Plain completions: `text` in chunks and in whole replies."""

    object = "text_completion"
    id_prefix = "cmpl-"

    def take_apart(self, state: ChoiceState, choice: dict[str, Any]) -> list[Piece]:
        """The text of a choice."""
        entries = completion_entries(choice.get("logprobs"))
        note_finish(state, choice)
        texts = [(Key("content"), choice["text"])] if choice.get("text") else []
        return _pieces(state, texts, entries)

    def delta(self, state: ChoiceState, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The part of a choice that holds these texts."""
        entries = [entry for piece in pieces for entry in piece.entries]
        return {"text": "".join(piece.text for piece in pieces), "logprobs": render_completion(entries)}

    message = delta

    def text(self, text: str) -> dict[str, Any]:
        """A choice with nothing but this text."""
        return {"text": text, "logprobs": None}

    whole = text


Shape = ChatShape | CompletionShape


def note_finish(state: ChoiceState, choice: dict[str, Any]) -> None:
    """Keep why a choice ended, once it has."""
    if choice.get("finish_reason") is not None:
        state.finish = {name: choice[name] for name in ("finish_reason", "stop_reason") if name in choice}


def _pieces(state: ChoiceState, texts: Sequence[tuple[Key, str]], entries: Sequence[Entry]) -> list[Piece]:
    """Texts with the log probabilities that belong to them."""
    aligner = state.aligner
    pieces: list[Piece] = []
    for number, (key, text) in enumerate(texts):
        fresh = entries if number == 0 else ()
        if not fresh and not aligner.waiting:
            pieces.append(Piece(state.index, key, text))
            continue
        if not text:
            pieces.append(Piece(state.index, key, ""))
        pieces += [Piece(state.index, key, p.text, p.entries) for p in aligner.feed(text, fresh)]
    if not texts and entries:
        aligner.feed("", entries)
    return pieces


def _note_call(state: ChoiceState, index: int, call: dict[str, Any]) -> str:
    """Keep what a tool call is; returns what it adds to the arguments."""
    function = call.get("function") or {}
    known = state.calls.setdefault(index, {"function": {}})
    known.update({name: call[name] for name in ("id", "type") if call.get(name)})
    name = function.get("name")
    if name:
        if index in state.calls_sent and name != known["function"].get("name"):
            raise UpstreamFailed("the engine renamed a tool call while it streamed")
        known["function"]["name"] = name
    arguments = function.get("arguments")
    return arguments if isinstance(arguments, str) else ""


def _add_call(state: ChoiceState, delta: dict[str, Any], piece: Piece) -> None:
    """Add a piece of a call's arguments; the call's name goes with the first that may go out."""
    index = piece.key.number
    header = {} if index in state.calls_sent else state.calls.get(index, {})
    state.calls_sent.add(index)
    if index == LEGACY_CALL:
        call = delta.setdefault("function_call", {**header.get("function", {}), "arguments": ""})
        call["arguments"] += piece.text
        return
    calls: list[dict[str, Any]] = delta.setdefault("tool_calls", [])
    for call in calls:
        if call["index"] == index:
            call["function"]["arguments"] += piece.text
            return
    function = {**header.get("function", {}), "arguments": piece.text}
    calls.append({**header, "index": index, "function": function})
