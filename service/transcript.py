"""What was said in one generation, where its policy lets texts be kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrails.moderate import ChannelKey

if TYPE_CHECKING:  # what makes generations knows this module
    from service.generation import Generation
    from service.request import Examined

MAX_CHARACTERS = 64_000
Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two replies that could have been given, and what a reward model made of each."""

    best: str
    worst: str
    best_score: float
    worst_score: float


@dataclass(slots=True)
class Transcript:
    """Gathered while the reply is made. `said` is the engine's text, `released` what went out of it, with
    placeholders where the request's values were masked."""

    said: dict[ChannelKey, list[str]] = field(default_factory=dict)
    released: dict[ChannelKey, list[str]] = field(default_factory=dict)
    examined: Examined | None = None
    contrast: Contrast | None = None

    def add_said(self, key: ChannelKey, text: str) -> None:
        """More of the engine's text."""
        self.said.setdefault(key, []).append(text)

    def add_released(self, key: ChannelKey, text: str) -> None:
        """More of what went out."""
        self.released.setdefault(key, []).append(text)

    def replies(self) -> list[str]:
        """Each choice's text that went out, in order; empty where it is too long to be kept."""
        contents = {key.choice: "".join(texts) for key, texts in self.released.items() if _content(key)}
        replies = [text for _, text in sorted(contents.items())]
        return replies if sum(map(len, replies)) <= MAX_CHARACTERS else []

    def withheld_reply(self, choice: int, channel: str) -> str:
        """What the engine said in a choice's channel."""
        texts = [texts for key, texts in self.said.items() if (key.choice, key.channel) == (choice, channel)]
        return "".join(texts[0])[:MAX_CHARACTERS] if texts else ""

    def withheld_input(self, param: str) -> str:
        """The text of the request that a finding is about, as it came."""
        places = self.examined.places if self.examined else ()
        return next((place.part.text for place in places if place.param == param), "")[:MAX_CHARACTERS]


def _content(key: ChannelKey) -> bool:
    return key.channel == "content"


def conversation(generation: Generation) -> Messages | None:
    """The request's turns, as the engine got them; None where they aren't texts alone, or too long."""
    payload = generation.payload
    if generation.kind == "text_completion":
        prompt = payload.get("prompt")
        turns: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else []
    else:
        turns = [_turn(message) for message in payload["messages"] if _plain(message)]
        if len(turns) != len(payload["messages"]):
            return None
    long = sum(len(turn["content"]) for turn in turns) > MAX_CHARACTERS
    return None if long or not turns else turns


def _plain(message: dict[str, Any]) -> bool:
    return isinstance(message.get("content"), str) and not message.get("tool_calls")


def _turn(message: dict[str, Any]) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}
