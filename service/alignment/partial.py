"""Replies in pieces: begun several times, judged, and continued where the engine stopped.

vLLM continues a chat's last message with `continue_final_message`, and a plain prompt by itself; what has
been said is in its prefix cache, so that going on costs little more than not having stopped. The text is
tokenized anew each time, so a piece may be cut into other tokens than it was written in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.alignment.candidates import Batch, Candidate, sample
from service.alignment.rewards import reply_text
from service.alignment.strategy import Payload
from service.engine.errors import UpstreamStatusError
from service.generation import Generation

WHOLE_ONLY = (
    "tools",
    "functions",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "min_tokens",
    "echo",
    "suffix",
    "prompt_logprobs",
)
"""Fields of requests that are about a reply as a whole: one begun anew would break what they ask for."""

PLAIN_LIMIT = 16
"""How many tokens a plain completion has at most that doesn't say, in OpenAI's API."""

UNFINISHED_CHARACTER = "\ufffd"


def divisible(body: Payload) -> bool:
    """Whether this request's reply can be made in pieces. Chats that the caller continues himself can't."""
    return not any(body.get(name) for name in (*WHOLE_ONLY, "continue_final_message"))


def plain(choice: Mapping[str, Any]) -> bool:
    """Whether all that this choice says is its text: nothing else could be continued."""
    message = choice.get("message")
    if message is None:
        return bool(choice.get("text"))
    others = ("tool_calls", "function_call", "reasoning", "reasoning_content", "refusal")
    return isinstance(message.get("content"), str) and not any(message.get(name) for name in others)


def token_limit(body: Payload) -> int | None:
    """The most tokens that the caller wants; None for as many as there are."""
    given = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(given, int):
        return given
    return None if "messages" in body else PLAIN_LIMIT


async def begin(generation: Generation, body: Payload, tokens: int, count: int, done: int) -> Batch:
    """`count` beginnings of at most `tokens` tokens; those that were cut there are not `done`."""
    limit = token_limit(body)
    asked = tokens if limit is None else min(tokens, limit)
    batch = await sample(generation, _capped(body, asked), count, done=done)
    for one in batch.candidates:
        _note_end(one, asked, 0, limit)
    return batch


async def go_on(
    generation: Generation, body: Payload, one: Candidate, tokens: int | None, count: int, done: int
) -> Batch:
    """`count` continuations of `one`, joined to it, by at most `tokens` tokens (None: to its end)."""
    limit = token_limit(body)
    room = None if limit is None else limit - one.tokens
    asked = min((amount for amount in (tokens, room) if amount is not None), default=None)
    further = _continued(body, one.text)
    try:
        batch = await sample(generation, _capped(further, asked), count, done=done)
    except UpstreamStatusError as error:
        if error.status != 400 or asked is None:
            raise
        asked = None  # the context may have no room for so many: then to its end
        batch = await sample(generation, _capped(further, None), count, done=done)
    for more in batch.candidates:
        more.choice = _joined(one.choice, more.choice)
        if asked is None:
            more.tokens += one.tokens
        else:
            _note_end(more, asked, one.tokens, limit)
        _stop_across(more, one.text, body.get("stop"))
    return batch


def _capped(body: Payload, tokens: int | None) -> Payload:
    limits = ("max_tokens", "max_completion_tokens")
    rest = {name: value for name, value in body.items() if name not in limits}
    return rest if tokens is None else {**rest, "max_tokens": tokens}


def _continued(body: Payload, text: str) -> Payload:
    if "messages" not in body:
        return {**body, "prompt": body["prompt"] + text}
    said = {"role": "assistant", "content": text}
    return {
        **body,
        "messages": [*body["messages"], said],
        "add_generation_prompt": False,
        "continue_final_message": True,
    }


def _note_end(one: Candidate, asked: int, before: int, limit: int | None) -> None:
    """Whether it was only cut, and where it was, how many tokens it certainly has."""
    cut = one.choice.get("finish_reason") == "length"
    one.tokens = before + (asked if cut else min(one.tokens, asked))
    one.done = not cut or (limit is not None and one.tokens >= limit)
    if not one.done:
        _set_text(one.choice, reply_text(one.choice).rstrip(UNFINISHED_CHARACTER))


def _set_text(choice: dict[str, Any], text: str) -> None:
    if "message" in choice:
        choice["message"] = {**choice["message"], "content": text}
    else:
        choice["text"] = text


def _joined(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """One choice of both; why it ended is told by the second."""
    whole = {**first, **then}
    if "message" in first:
        whole["message"] = first["message"]
    _set_text(whole, reply_text(first) + reply_text(then))
    whole["logprobs"] = _both(first.get("logprobs"), then.get("logprobs"), len(reply_text(first)))
    for name in ("token_ids",):
        if name in then:
            whole[name] = [*(first.get(name) or ()), *(then[name] or ())]
    return whole


def _both(first: dict[str, Any] | None, then: dict[str, Any] | None, offset: int) -> dict[str, Any] | None:
    if not first or not then:
        return first or then
    joined: dict[str, Any] = dict(first)
    for name, values in then.items():
        if isinstance(values, list):
            moved = [value + offset for value in values] if name == "text_offset" else values
            joined[name] = [*(first.get(name) or ()), *moved]
    return joined


def _stop_across(one: Candidate, before: str, stop: Any) -> None:
    """A stop string that began in the piece before is one that no engine saw."""
    text = one.text
    stops = [stop] if isinstance(stop, str) else stop or ()
    found = [text.find(word, max(0, len(before) - len(word) + 1), len(before) + len(word)) for word in stops]
    if at := [place for place in found if 0 <= place < len(before)]:
        _set_text(one.choice, text[: min(at)])
        one.choice["finish_reason"] = "stop"
        one.done = True
