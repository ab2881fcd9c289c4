"""Requests to a policy without guards: bytes in, bytes out, and only the model's name rewritten."""

from __future__ import annotations

import re
import time
from typing import Any

import orjson

from guardrails.moderate import ChannelKey
from service.engine.errors import UpstreamError
from service.generation import Generation
from service.http import JSON_TYPE, Send, send_response
from service.openai import sse
from service.openai.errors import from_engine
from service.outcomes import Tally
from service.transcript import Transcript

# The first `"model": "…"` of an object as engines write it. Within a JSON string every quote is escaped,
# so that this can't match inside a text. The look-behind follows what it is about, because an expression
# that begins with plain bytes is searched for several times faster.
MODEL = re.compile(rb'"model"(?<!\\"model")\s*:\s*"(?:[^"\\]|\\.)*"')
NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


async def complete(generation: Generation, send: Send) -> None:
    """A whole reply."""
    call, served = generation.call, generation.served
    body = generation.upstream_body()
    call.state = "generating"
    began = time.perf_counter()
    try:
        reply = await served.target.engine.complete(generation.path, body, generation.upstream_headers)
    except UpstreamError as error:
        raise from_engine(error) from error
    finally:
        call.upstream_s += time.perf_counter() - began
    call.state = "releasing"
    parsed = _object(reply.body)
    generation.usage.read(parsed.get("usage"))
    if generation.tally is not None:
        _tally(generation.tally, parsed, generation.transcript)
    content = MODEL.sub(_model(generation), reply.body, count=1)
    await send_response(send, 200, content, (JSON_TYPE, *generation.headers()))
    call.state = "finished"


async def stream(generation: Generation, send: Send) -> None:
    """A reply as server-sent events."""
    call, served = generation.call, generation.served
    body = generation.upstream_body()
    call.state = "generating"
    began = time.perf_counter()
    try:
        events = await served.target.engine.open_stream(generation.path, body, generation.upstream_headers)
        async with events:
            await events.prime()
            call.upstream_s += time.perf_counter() - began
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [*sse.HEADERS, *generation.headers()],
                }
            )
            call.state = "releasing"
            name = _model(generation)
            began = time.perf_counter()
            async for data in events:
                call.upstream_s += time.perf_counter() - began
                chunk = _chunk(generation, data, name)
                if chunk:
                    generation.note_first_token()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                began = time.perf_counter()
        call.upstream_s += time.perf_counter() - began
    except UpstreamError as error:
        raise from_engine(error) from error
    await send({"type": "http.response.body", "body": sse.DONE})
    call.state = "finished"


def _chunk(generation: Generation, data: bytes, name: bytes) -> bytes:
    """One event for the client; empty for a usage chunk that only we asked for."""
    if generation.tally is not None:
        _tally(generation.tally, _object(data), generation.transcript)
    if NO_CHOICES.search(data):
        usage = _object(data).get("usage")
        generation.usage.read(usage)
        if usage is not None and not generation.wants_usage:
            return b""
    return sse.raw_event(MODEL.sub(name, data, count=1))


def _model(generation: Generation) -> bytes:
    replacement = b'"model":' + orjson.dumps(generation.shown)
    return replacement.replace(b"\\", rb"\\")


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; empty where there is none."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _tally(tally: Tally, payload: dict[str, Any], transcript: Transcript | None) -> None:
    """Count a whole reply, or a chunk of one; write it down where somebody wants its text."""
    if not tally.completion_id and isinstance(payload.get("id"), str):
        tally.completion_id = payload["id"]
    choices = payload.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            text = _text(choice.get("message") or choice.get("delta") or choice)
            tally.characters += len(text)
            if transcript is not None and text:
                transcript.add_released(ChannelKey(_index(choice)), text)


def _text(said: Any) -> str:
    texts = (said.get("content"), said.get("text")) if isinstance(said, dict) else ()
    return "".join(text for text in texts if isinstance(text, str))


def _index(choice: dict[str, Any]) -> int:
    index = choice.get("index", 0)
    return index if isinstance(index, int) else 0
