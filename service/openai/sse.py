"""Server-sent events on the way out (WHATWG HTML, section 9.2), in the form that OpenAI's API gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would otherwise collect the stream
)


def event(payload: Mapping[str, Any]) -> bytes:
    """One event that carries a JSON object. JSON has no raw line feeds, so it is always one line."""
    return b"data: %b\n\n" % orjson.dumps(payload)


def raw_event(data: bytes) -> bytes:
    """One event that carries bytes as they came; an upstream's line feeds become further data lines."""
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    return b"data: %b\n\n" % data
