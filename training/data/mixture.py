"""What a run is trained on: sources by relative path with their licences, cleaned, split, mixed.

A conversation is held out by a hash of its own words, so that it stays held out in every run, whatever
the seed or the mixture.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from training.config import Config
from training.data.cleaning import clean_conversation, rare_share, rare_words
from training.data.conversation import Conversation, Message, Supervise
from training.data.formats import Format, read_conversations
from training.errors import ConfigError, DataError, TrainingError


class SourceConfig(Config):
    """One data file. `path` is relative to the data root; `share` of its conversations are taken.

    `max_rare_share` drops conversations with more than this share of words that are rare in the file.
    """

    path: str
    format: Format
    origin: str
    licence: str
    columns: dict[str, str] = {}
    supervise: Supervise = "assistant"
    clean: bool = False
    max_rare_share: float | None = Field(default=None, gt=0, le=1)
    max_words: int | None = Field(default=None, gt=0)
    share: float = Field(default=1.0, gt=0, le=1)
    repeat: int = Field(default=1, ge=1)
    on_bad_row: Literal["raise", "skip"] = "raise"


class MixtureConfig(Config):
    """`system_prompts` are put before a random `system_share` of the conversations that have none."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    held_out: float = Field(default=0.01, ge=0, lt=1)
    system_prompts: tuple[str, ...] = ()
    system_share: float = Field(default=0.0, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class Mixture:
    train: tuple[Conversation, ...]
    held_out: tuple[Conversation, ...]
    digests: dict[str, str]
    report: tuple[str, ...]


def load_mixture(config: MixtureConfig, root: Path, seed: int) -> Mixture:
    """Read, clean, split and mix; the order of `train` is left to the epochs."""
    chance = random.Random(seed)  # noqa: S311  a mixture, no secret
    train: list[Conversation] = []
    held_out: list[Conversation] = []
    digests: dict[str, str] = {}
    report: list[str] = []
    for source in config.sources:
        path = resolve_source(root, source.path)
        digests[source.path] = file_digest(path)
        kept, line = _read_source(source, path, chance)
        report.append(line)
        for conversation in kept:
            if is_held_out(conversation, config.held_out):
                held_out.append(conversation)
                continue
            copies = [_with_system(conversation, config, chance) for _ in range(source.repeat)]
            train.extend(copies)
    if not train:
        raise TrainingError("no conversation is left to train on after cleaning; see the data report")
    return Mixture(tuple(train), tuple(held_out), digests, tuple(report))


def resolve_source(root: Path, relative: str) -> Path:
    """The source's file; raises ConfigError for a file that is missing or must not be trained on."""
    path = root / relative
    if "research_only" in path.resolve().parts:
        raise ConfigError(f"{relative}: research-only data never trains weights that are shipped; remove it")
    if not path.is_file():
        raise ConfigError(f"{path}: no such data file; set the data root with --data DIR or KEEL_DATA")
    return path


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def is_held_out(conversation: Conversation, share: float) -> bool:
    words = "\n".join(m.content for m in conversation.messages if m.role != "system")
    bucket = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")
    return bucket < share * 2**64


def _read_source(source: SourceConfig, path: Path, chance: random.Random) -> tuple[list[Conversation], str]:
    skipped: list[DataError] = []
    candidates: list[Conversation] = []
    total = 0
    for conversation in read_conversations(
        path,
        source.format,
        source.columns,
        source.supervise,
        skipped if source.on_bad_row == "skip" else None,
    ):
        total += 1
        cleaned = clean_conversation(conversation) if source.clean else conversation
        if cleaned is None or (source.max_words and _words(cleaned) > source.max_words):
            continue
        candidates.append(cleaned)
    if source.max_rare_share is not None:
        rare = rare_words(candidates)
        candidates = [c for c in candidates if rare_share(c, rare) <= source.max_rare_share]
    kept = [c for c in candidates if source.share == 1 or chance.random() < source.share]
    line = f"{source.path}: {len(kept)} of {total} conversations kept, {len(skipped)} rows unreadable"
    return kept, line


def _words(conversation: Conversation) -> int:
    return sum(len(message.content.split()) for message in conversation.messages)


def _with_system(conversation: Conversation, config: MixtureConfig, chance: random.Random) -> Conversation:
    has_one = conversation.messages[0].role == "system"
    if has_one or not config.system_prompts or chance.random() >= config.system_share:
        return conversation
    message = Message("system", chance.choice(config.system_prompts))
    return replace(conversation, messages=(message, *conversation.messages))


def texts(conversations: Sequence[Conversation]) -> list[str]:
    """Every message, for training a tokenizer."""
    return [message.content for conversation in conversations for message in conversation.messages]
