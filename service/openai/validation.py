"""From pydantic's errors to one that names the field as the client wrote it: `messages[0].content`."""

from __future__ import annotations

import re

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from service.openai.errors import BadRequest

# Parts of pydantic's locations that name a branch of a union, not a field.
_BRANCHES = re.compile(r"(str|int|(list|dict|function-\w+|constrained-\w+)\[.*\]|constrained-\w+)")


def explain(error: ValidationError) -> BadRequest:
    """The first thing that is wrong, with its place. The value itself is not repeated: it may be private."""
    details = error.errors(include_url=False, include_input=False)
    deepest = max(details, key=lambda item: len(_path(item)))
    first = deepest if _same_field(details) else details[0]
    param = _render(_path(first))
    if first["type"] == "missing":
        return BadRequest(f"{param or 'the body'} is missing", param=param, code="missing_required_parameter")
    if _same_field(details) and len(details) > 1 and all(len(_path(d)) == len(_path(first)) for d in details):
        expected = " or ".join(dict.fromkeys(_expected(item) for item in details))
        return BadRequest(f"{param}: {expected}", param=param, code="invalid_type")
    message = first["msg"].removeprefix("Value error, ")
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return BadRequest(f"{param or 'the body'}: {message[:1].lower()}{message[1:]}", param=param, code=code)


def _expected(item: ErrorDetails) -> str:
    message = item["msg"]
    return message[:1].lower() + message[1:]


def _same_field(details: list[ErrorDetails]) -> bool:
    """Whether all errors come from the branches of one union."""
    roots = {_path(item)[:1] for item in details}
    return len(roots) == 1


def _path(item: ErrorDetails) -> tuple[str | int, ...]:
    return tuple(part for part in item["loc"] if isinstance(part, int) or not _BRANCHES.fullmatch(part))


def _render(path: tuple[str | int, ...]) -> str | None:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text or None
