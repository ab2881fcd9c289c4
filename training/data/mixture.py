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

from policies.manifest import DataSource
from training.config import Config
from training.data.cleaning import clean_conversation, rare_share, rare_words
from training.data.conversation import Conversation, Message, Supervise
from training.data.formats import Format, read_conversations
from training.data.starter import digest as starter_digest
from training.data.starter import starter_conversations
from training.errors import ConfigError, DataError, TrainingError

STARTER = DataSource(
    path="training/data/starter", origin="written for this project", licence="MIT", sha256=starter_digest()
)


class SourceConfig(Config):
    """One data file. `path` is relative to the data root; `share` of its conversations are trained on.

    `max_rare_share` drops conversations with more than this share of words that are rare in the file.
    """

    path: str
    format: Format
    origin: str
    licence: str
    columns: dict[str, str] = Field(default_factory=dict)
    supervise: Supervise = "assistant"
    clean: bool = False
    max_rare_share: float | None = Field(default=None, gt=0, le=1)
    max_words: int | None = Field(default=None, gt=0)
    share: float = Field(default=1.0, gt=0, le=1)
    repeat: int = Field(default=1, ge=1)
    on_bad_row: Literal["raise", "skip"] = "raise"


class MixtureConfig(Config):
    """Data files, and as many conversations of `training.data.starter` as `starter` says.

    `system_prompts` are put before a random `system_share` of the conversations that have none.
    """

    sources: tuple[SourceConfig, ...] = ()
    starter: int = Field(default=0, ge=0)
    held_out: float = Field(default=0.01, ge=0, lt=1)
    system_prompts: tuple[str, ...] = ()
    system_share: float = Field(default=0.0, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class Mixture:
    train: tuple[Conversation, ...]
    held_out: tuple[Conversation, ...]
    data: tuple[DataSource, ...]
    report: tuple[str, ...]


def load_mixture(config: MixtureConfig, root: Path, seed: int) -> Mixture:
    """Read, clean, split and mix; the order of `train` is left to the epochs."""
    chance = random.Random(seed)
    train: list[Conversation] = []
    held_out: list[Conversation] = []
    data: list[DataSource] = []
    report: list[str] = []
    for source in config.sources:
        path = resolve_source(root, source.path)
        digest = file_digest(path)
        data.append(DataSource(path=source.path, origin=source.origin, licence=source.licence, sha256=digest))
        kept, line = _read_source(source, path, chance, config.held_out)
        report.append(line)
        for conversation in kept:
            if is_held_out(conversation, config.held_out):
                held_out.append(conversation)
                continue
            copies = [_with_system(conversation, config, chance) for _ in range(source.repeat)]
            train.extend(copies)
    if config.starter:
        data.append(STARTER)
        report.append(f"{STARTER.path}: {config.starter} conversations")
        for conversation in starter_conversations(config.starter, seed):
            train.append(_with_system(conversation, config, chance))
    if not train:
        raise TrainingError("no conversation is left to train on after cleaning; see the data report")
    return Mixture(tuple(train), tuple(held_out), tuple(data), tuple(report))


def resolve_source(root: Path, relative: str) -> Path:
    """The source's file; raises ConfigError for a file that is missing or must not be trained on."""
    path = root / relative
    if "research_only" in path.resolve().parts:
        raise ConfigError(f"{relative}: research-only data never trains weights that are shipped; remove it")
    if not path.is_file():
        raise ConfigError(f"{path}: no such data file; set the data root with --data DIR or KEEL_DATA")
    return path


def file_digest(path: Path) -> str:
    """Hex SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_held_out(conversation: Conversation, share: float) -> bool:
    words = "\n".join(m.content for m in conversation.messages if m.role != "system")
    bucket = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")
    return bucket < share * 2**64


def _read_source(
    source: SourceConfig, path: Path, chance: random.Random, held_out: float
) -> tuple[list[Conversation], str]:
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
    share = source.share
    kept = [c for c in candidates if share == 1 or chance.random() < share or is_held_out(c, held_out)]
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
