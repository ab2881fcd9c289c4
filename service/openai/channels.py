"""A reply as guards see it: texts in channels, per choice; how chunks come apart and together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from guardrails.guard import Channel
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

# What else is known of a choice's end and holds no text of the model's; all other fields are left out, for
# nobody has examined them.
ENDING_FIELDS = ("finish_reason", "stop_reason", "native_finish_reason", "matched_stop")

CallKind = Literal["function", "custom"]
CALL_TEXTS: dict[CallKind, tuple[Channel, str]] = {  # a call's text: how it is examined, what it is called
    "function": ("tool_arguments", "arguments"),
    "custom": ("tool_input", "input"),
}
CALL_KINDS: dict[Channel, CallKind] = {channel: kind for kind, (channel, _) in CALL_TEXTS.items()}


@dataclass(slots=True)
class ChoiceState:
    """What is known of one choice while it streams."""

    index: int
    role: str | None = None
    role_sent: bool = False
    has_content: bool = False
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)  # what a tool call is, but its text
    calls_sent: set[int] = field(default_factory=set)
    reasoning_field: str = REASONING_FIELDS[0]
    finish: dict[str, Any] | None = None  # the fields of ENDING_FIELDS that it ended with
    aligner: Aligner = field(default_factory=Aligner)

    def tool_name(self, call: int) -> str | None:
        """The name of what a tool call calls, as far as it is known."""
        known = self.calls[call]
        name: str | None = known[_kind(known)].get("name")
        return name


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
            kind, text = _note_call(state, number, call)
            texts.append((ChannelKey(index, CALL_TEXTS[kind][0], number), text))
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
            elif piece.key.channel in CALL_KINDS:
                _add_call(state, delta, piece, CALL_KINDS[piece.key.channel])
            else:
                delta[piece.key.channel] = delta.get(piece.key.channel, "") + piece.text
        entries = [entry for piece in pieces for group in piece.attachments for entry in group]
        return {"delta": delta, "logprobs": render_chat(entries)}

    def unsent_calls(self, state: ChoiceState) -> list[Piece]:
        """Empty pieces for the tool calls of which nothing went out, for they have no text."""
        unsent = [(number, call) for number, call in state.calls.items() if number not in state.calls_sent]
        return [
            Piece(ChannelKey(state.index, CALL_TEXTS[_kind(call)][0], number), "") for number, call in unsent
        ]

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
        state.finish = {name: choice[name] for name in ENDING_FIELDS if name in choice}


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


def _kind(call: dict[str, Any]) -> CallKind:
    return "custom" if "custom" in call else "function"


def _note_call(state: ChoiceState, index: int, call: dict[str, Any]) -> tuple[CallKind, str]:
    """Keep what a tool call is; returns its kind, and what it adds to its arguments or input."""
    said_custom = bool(call.get("custom")) or call.get("type") == "custom"
    known = state.calls.setdefault(index, {"custom": {}} if said_custom else {"function": {}})
    kind = _kind(known)
    if call.get("function" if kind == "custom" else "custom"):
        raise UpstreamFailed("the engine's tool call is a function's and a custom tool's at once")
    known.update({name: call[name] for name in ("id", "type") if call.get(name)})
    said = call.get(kind) or {}
    name = said.get("name")
    if name:
        if known[kind].get("name", name) != name:
            raise UpstreamFailed("the engine renamed a tool call while it streamed")
        known[kind]["name"] = name
    text = said.get(CALL_TEXTS[kind][1])
    return kind, text if isinstance(text, str) else ""


def _add_call(state: ChoiceState, delta: dict[str, Any], piece: Piece, kind: CallKind) -> None:
    """Add a piece of a call's text; the call's name goes with the first that may go out."""
    index, text = piece.key.tool_call or 0, CALL_TEXTS[kind][1]
    header = {} if index in state.calls_sent else state.calls.get(index, {})
    state.calls_sent.add(index)
    if index == LEGACY_CALL:
        call = delta.setdefault("function_call", {**header.get("function", {}), "arguments": ""})
        call["arguments"] += piece.text
        return
    calls: list[dict[str, Any]] = delta.setdefault("tool_calls", [])
    for call in calls:
        if call["index"] == index:
            call[kind][text] += piece.text
            return
    calls.append({**header, "index": index, kind: {**header.get(kind, {}), text: piece.text}})
