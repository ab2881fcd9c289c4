"""Starter conversations: written for this project, combined by program.

Crowd-written dialogue teaches a small model how people talk, but not what it is, how to answer a plain
question, or how to use what it was just told. These short exchanges do: greetings and identity, simple
questions, lists, sums, stories, refusals, and copying names, addresses and placeholders (`<PERSON_1>`, as
masking guards write them) from the question into the answer. One to four exchanges make a conversation,
so that each is also seen after others.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from training.data.conversation import Conversation, Message
from training.data.starter.knowledge import knowledge_exchanges
from training.data.starter.personal import personal_exchanges
from training.data.starter.words import Exchange

_FOLDER = Path(__file__).parent

_OPENING_ENTRIES = 3  # of smalltalk.yaml: greetings come first in the file


@cache
def _load(name: str) -> Any:
    return yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))


def digest() -> str:
    """SHA-256 of what the conversations are made from, text and program."""
    state = hashlib.sha256()
    for path in sorted([*_FOLDER.glob("*.yaml"), *_FOLDER.glob("*.py")]):
        state.update(path.read_bytes())
    return state.hexdigest()


def starter_conversations(count: int, seed: int) -> Iterator[Conversation]:
    """`count` conversations, a pure function of the arguments (and of `digest`)."""
    chance = random.Random(f"starter/{seed}")
    smalltalk = _load("smalltalk.yaml")
    answers = _load("answers.yaml")
    vocabulary = sorted(set(re.findall(r"[a-z]{2,}", str(answers))))
    generators = {**knowledge_exchanges(answers), **personal_exchanges(vocabulary)}
    kinds: list[Callable[[random.Random], Exchange]] = [lambda r: _smalltalk(r.choice(smalltalk), r)]
    weights = [7.0]
    for generate, weight in generators.items():
        kinds.append(generate)
        weights.append(weight)
    for _ in range(count):
        exchanges: list[Exchange] = []
        if chance.random() < 0.25:
            exchanges.append(_smalltalk(chance.choice(smalltalk[:_OPENING_ENTRIES]), chance))
        for generate in chance.choices(kinds, weights, k=chance.choice((1, 1, 1, 2, 2, 3))):
            exchanges.append(generate(chance))
        turns = [turn for exchange in exchanges for turn in exchange]
        yield Conversation(tuple(Message("assistant" if i % 2 else "user", t) for i, t in enumerate(turns)))


def _smalltalk(entry: dict[str, list[str]], chance: random.Random) -> Exchange:
    return (chance.choice(entry["user"]), chance.choice(entry["assistant"]))
