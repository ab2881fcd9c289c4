"""A conversation, the one form into which every data format is brought."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]

# Whose words are learnt: the assistant's, or everybody's (language modelling on dialogue).
Supervise = Literal["assistant", "all"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """An optional system message, then user and assistant in turns, the user first.

    `difficulty`, where the data says it, orders a curriculum.
    """

    messages: tuple[Message, ...]
    supervise: Supervise = "assistant"
    difficulty: float | None = None

    def problem(self) -> str | None:
        """What makes this conversation unfit for training, or None."""
        turns = [m for m in self.messages if m.role != "system"]
        if any(m.role == "system" for m in self.messages[1:]):
            return "a system message stands after the first message"
        if not turns:
            return "no turns"
        for message, expected in zip(turns, _alternate(), strict=False):
            if message.role != expected:
                return f"turns must alternate user, assistant, …; found {message.role} for {expected}"
        if not any(m.role == "assistant" for m in turns):
            return "no assistant turn, so nothing to learn from"
        if any(not m.content.strip() for m in self.messages):
            return "an empty message"
        return None

    def as_dicts(self) -> list[dict[str, str]]:
        return [{"role": m.role, "content": m.content} for m in self.messages]


def _alternate() -> Iterator[Role]:
    while True:
        yield "user"
        yield "assistant"
