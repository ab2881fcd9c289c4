"""A reply as guards see it: texts in channels, per choice; how chunks come apart and together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from guardrails.moderate import ChannelKey, Delta, Piece
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


@dataclass(slots=True)
class ChoiceState:
    """What is known of one choice while it streams."""

    index: int
    role: str | None = None
    role_sent: bool = False
    has_content: bool = False
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)  # what a tool call is, but its arguments
    calls_sent: set[int] = field(default_factory=set)
    reasoning_field: str = REASONING_FIELDS[0]
    finish: dict[str, Any] | None = None  # finish_reason and, from vLLM, stop_reason
    aligner: Aligner = field(default_factory=Aligner)


class ChatShape:
    """Chat completions: `delta` in chunks, `message` in whole replies, alike in what they hold."""

    object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def take_apart(self, state: ChoiceState, choice: dict[str, Any]) -> list[Delta]:
        """The texts of a choice, in the order in which they are examined; the rest goes into `state`."""
        said = choice.get("delta") or choice.get("message") or {}
        state.role = state.role or said.get("role")
        state.has_content = state.has_content or said.get("content") is not None
        index, texts = state.index, list[tuple[ChannelKey, str]]()
        for name in REASONING_FIELDS:
            if said.get(name):
                state.reasoning_field = name
                texts.append((ChannelKey(index, "reasoning"), said[name]))
                break
        if said.get("content"):
            texts.append((ChannelKey(index), said["content"]))
        if said.get("refusal"):
            texts.append((ChannelKey(index, "refusal"), said["refusal"]))
        calls = [(call.get("index", i), call) for i, call in enumerate(said.get("tool_calls") or ())]
        if said.get("function_call"):
            calls.append((LEGACY_CALL, {"function": said["function_call"]}))
        for number, call in calls:
            texts.append((ChannelKey(index, "tool_arguments", number), _note_call(state, number, call)))
        entries = chat_entries((choice.get("logprobs") or {}).get("content"))
        note_finish(state, choice)
        return _deltas(state, texts, entries)

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
        entries = [entry for piece in pieces for group in piece.attachments for entry in group]
        return {"delta": delta, "logprobs": render_chat(entries)}

    def unsent_calls(self, state: ChoiceState) -> list[Piece]:
        """Empty pieces for the tool calls of which nothing went out, for they have no arguments."""
        unsent = [number for number in state.calls if number not in state.calls_sent]
        return [Piece(ChannelKey(state.index, "tool_arguments", number), "") for number in unsent]

    def message(self, state: ChoiceState, pieces: Sequence[Piece], complete: bool) -> dict[str, Any]:
        """A choice of a reply that was not streamed; `complete` where nothing of it is withheld."""
        part = self.delta(state, [*pieces, *(self.unsent_calls(state) if complete else ())])
        content = "" if state.has_content else None
        message = {"role": state.role or "assistant", "content": content, **part["delta"]}
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

    def take_apart(self, state: ChoiceState, choice: dict[str, Any]) -> list[Delta]:
        """The text of a choice."""
        entries = completion_entries(choice.get("logprobs"))
        note_finish(state, choice)
        texts = [(ChannelKey(state.index), choice["text"])] if choice.get("text") else []
        return _deltas(state, texts, entries)

    def delta(self, state: ChoiceState, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The part of a choice that holds these texts."""
        entries = [entry for piece in pieces for group in piece.attachments for entry in group]
        return {"text": "".join(piece.text for piece in pieces), "logprobs": render_completion(entries)}

    def unsent_calls(self, state: ChoiceState) -> list[Piece]:
        """There are no tool calls here."""
        return []

    def message(self, state: ChoiceState, pieces: Sequence[Piece], complete: bool) -> dict[str, Any]:
        """A choice of a reply that was not streamed."""
        return self.delta(state, pieces)

    def text(self, text: str) -> dict[str, Any]:
        """A choice with nothing but this text."""
        return {"text": text, "logprobs": None}

    whole = text


Shape = ChatShape | CompletionShape


def note_finish(state: ChoiceState, choice: dict[str, Any]) -> None:
    """Keep why a choice ended, once it has."""
    if choice.get("finish_reason") is not None:
        state.finish = {name: choice[name] for name in ("finish_reason", "stop_reason") if name in choice}


def _deltas(
    state: ChoiceState, texts: Sequence[tuple[ChannelKey, str]], entries: Sequence[Entry]
) -> list[Delta]:
    """Texts with the log probabilities that belong to them."""
    aligner = state.aligner
    deltas: list[Delta] = []
    for number, (key, text) in enumerate(texts):
        fresh = entries if number == 0 else ()
        if not fresh and not aligner.waiting:
            deltas.append(Delta(key, text))
            continue
        if not text:
            deltas.append(Delta(key, ""))
        deltas += [Delta(key, paired.text, paired.entries or None) for paired in aligner.feed(text, fresh)]
    if not texts and entries:
        aligner.feed("", entries)
    return deltas


def _note_call(state: ChoiceState, index: int, call: dict[str, Any]) -> str:
    """Keep what a tool call is; returns what it adds to the arguments."""
    function = call.get("function") or {}
    known = state.calls.setdefault(index, {"function": {}})
    known.update({name: call[name] for name in ("id", "type") if call.get(name)})
    name = function.get("name")
    if name:
        if known["function"].get("name", name) != name:
            raise UpstreamFailed("the engine renamed a tool call while it streamed")
        known["function"]["name"] = name
    arguments = function.get("arguments")
    return arguments if isinstance(arguments, str) else ""


def _add_call(state: ChoiceState, delta: dict[str, Any], piece: Piece) -> None:
    """Add a piece of a call's arguments; the call's name goes with the first that may go out."""
    index = piece.key.tool_call or 0
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
