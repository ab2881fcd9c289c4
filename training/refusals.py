"""Whether a reply declines what it was asked for, by its wording."""

from __future__ import annotations

import re

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am)(?: very| so)? sorry,? (?:but )?i (?:can|won|do|am not)"
    r"|i (?:cannot|can ?not|can't|won't|will not|am unable to|am not able to|must decline|have to decline)"
    r"|(?:that|this) is (?:not )?something (?:that )?i (?:cannot|can't|can help))",
    re.I,
)


def refuses(reply: str) -> bool:
    """Whether the reply says that it will not do what it was asked for."""
    return _REFUSAL.search(reply.replace("’", "'")) is not None
