"""What a preference method is trained on: files and generated pairs, split so that no prompt is on both.

A row is held out by a hash of its prompt's first user message, whatever the seed or the order: all
comparisons of one prompt, and of the dialogues that go on from it, land on the same side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import Field, model_validator

from policies.manifest import DataSource
from training.config import Config
from training.data.mixture import file_digest, resolve_source
from training.data.preferences import (
    Comparison,
    ComparisonFormat,
    Preference,
    Prompt,
    Rating,
    preference_row,
    prompt_as_json,
    read_preferences,
    read_prompts,
    read_ratings,
)
from training.errors import DataError, TrainingError

Row = TypeVar("Row")
Other = TypeVar("Other")


class Source(Config):
    """One file. `path` is relative to the data root; `columns` maps our column names to the file's own."""

    path: str
    origin: str
    licence: str
    columns: dict[str, str] = Field(default_factory=dict)
    on_bad_row: Literal["raise", "skip"] = "raise"
    limit: int | None = Field(default=None, gt=0)


class PreferenceSource(Source):
    format: ComparisonFormat = "preferences"


class RatingSource(Source):
    """A file of ratings, or of comparisons: then what was chosen is wanted, what was rejected is not."""

    format: Literal["ratings"] | ComparisonFormat = "ratings"


class PromptSource(Source):
    """A file with a prompt in each row, or format "hh"."""

    format: Literal["prompts", "hh"] = "prompts"


class _Sources(Config):
    held_out: float = Field(default=0.1, ge=0, lt=1)
    demo: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> _Sources:
        if not self.demo and not getattr(self, "files", ()):
            raise ValueError("no data: name files, or say with demo how many rows to generate")
        return self


class PreferenceDataConfig(_Sources):
    """Files of comparisons, and `demo` generated pairs; `held_out` is the share kept for evaluation."""

    files: tuple[PreferenceSource, ...] = ()


class RatingDataConfig(_Sources):
    """Files of ratings, and the ratings that `demo` generated pairs come to."""

    files: tuple[RatingSource, ...] = ()


class PromptDataConfig(_Sources):
    """Files with prompts, and `demo` generated ones."""

    files: tuple[PromptSource, ...] = ()


@dataclass(frozen=True, slots=True)
class Split(Generic[Row]):
    """Rows to train on and rows held out, what they came from, and a line about each source."""

    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    data: tuple[DataSource, ...]
    report: tuple[str, ...]


PreferenceData = Split[Preference]
RatingData = Split[Rating]
PromptData = Split[Prompt]


def load_comparisons(config: PreferenceDataConfig, root: Path, seed: int) -> Split[Comparison]:
    """Pairs as pairs and rankings whole, for a model that takes a ranking as one batch element."""

    def read(source: PreferenceSource, path: Path, skipped: list[DataError] | None) -> Iterator[Comparison]:
        return read_preferences(path, source.format, source.columns, skipped)

    pairs = _demo_preferences(config.demo, seed)
    return _load(config, config.files, read, list(pairs), _pairs_digest(pairs), root)


def load_preferences(config: PreferenceDataConfig, root: Path, seed: int) -> PreferenceData:
    """Everything as pairs, rankings expanded; raises DataError with file and line, or ConfigError."""
    return _expanded(load_comparisons(config, root, seed), as_pairs)


def load_ratings(config: RatingDataConfig, root: Path, seed: int) -> RatingData:
    """Ratings, and comparisons as ratings."""

    def read(source: RatingSource, path: Path, skipped: list[DataError] | None) -> Iterator[Rating]:
        if source.format == "ratings":
            return read_ratings(path, source.columns, skipped)
        comparisons = read_preferences(path, source.format, source.columns, skipped)
        return iter(as_ratings(pair for comparison in comparisons for pair in as_pairs(comparison)))

    pairs = _demo_preferences(config.demo, seed)
    return _load(config, config.files, read, as_ratings(pairs), _pairs_digest(pairs), root)


def load_prompts(config: PromptDataConfig, root: Path, seed: int) -> PromptData:
    """Prompts, each once."""

    def read(source: PromptSource, path: Path, skipped: list[DataError] | None) -> Iterator[Prompt]:
        if source.format == "prompts":
            return read_prompts(path, source.columns, skipped)
        return (row.prompt for row in read_preferences(path, "hh", source.columns, skipped))

    prompts = _demo_prompts(config.demo, seed)
    digest = rows_digest({"prompt": prompt_as_json(prompt)} for prompt in prompts)
    split = _load(config, config.files, read, prompts, digest, root)
    return Split(
        tuple(dict.fromkeys(split.train)), tuple(dict.fromkeys(split.held_out)), split.data, split.report
    )


def as_pairs(comparison: Comparison) -> list[Preference]:
    return [comparison] if isinstance(comparison, Preference) else comparison.pairs()


def as_ratings(preferences: Iterable[Preference]) -> list[Rating]:
    """Each reply once, in order: wanted where it was chosen, unwanted where it was rejected.

    A reply that was chosen in one pair and rejected in another is neither, and is left out.
    """
    seen: dict[tuple[Prompt, str], Rating | None] = {}
    for p in preferences:
        for reply, label in ((p.chosen, True), (p.rejected, False)):
            known = seen.get((p.prompt, reply), ...)
            if known is ...:
                seen[p.prompt, reply] = Rating(
                    p.prompt, reply, label, objective=p.objective, rater=p.rater, id=p.id
                )
            elif known is not None and known.label is not label:
                seen[p.prompt, reply] = None
    return [rating for rating in seen.values() if rating is not None]


def is_held_out(prompt: Prompt, share: float) -> bool:
    """By the first user message alone, its spacing and case aside."""
    first = next(message.content for message in prompt if message.role == "user")
    words = " ".join(first.casefold().split())
    bucket = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")
    return bucket < share * 2**64


def rows_digest(rows: Iterable[object]) -> str:
    """Hex SHA-256 of generated rows, which have no file to take it of."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


_AnySource = TypeVar("_AnySource", bound=Source)


def _load(
    config: _Sources,
    files: Sequence[_AnySource],
    read: Callable[[_AnySource, Path, list[DataError] | None], Iterator[Row]],
    generated: Sequence[Row],
    generated_digest: str,
    root: Path,
) -> Split[Row]:
    rows: list[Row] = []
    data: list[DataSource] = []
    report: list[str] = []
    for source in files:
        path = resolve_source(root, source.path)
        skipped: list[DataError] = []
        found = list(read(source, path, skipped if source.on_bad_row == "skip" else None))[: source.limit]
        rows.extend(found)
        digest = file_digest(path)
        data.append(DataSource(path=source.path, origin=source.origin, licence=source.licence, sha256=digest))
        report.append(f"{source.path}: {len(found)} rows, {len(skipped)} unreadable")
    if generated:
        rows.extend(generated)
        data.append(
            DataSource(
                path="training/demo",
                origin="generated by this project",
                licence="MIT",
                sha256=generated_digest,
            )
        )
        report.append(f"training/demo: {len(generated)} rows")
    train = tuple(row for row in rows if not is_held_out(_prompt_of(row), config.held_out))
    held_out = tuple(row for row in rows if is_held_out(_prompt_of(row), config.held_out))
    if not train:
        raise TrainingError("no row is left to train on; see the files, or hold out a smaller share")
    report.append(f"{len(train)} to train on, {len(held_out)} held out by prompt")
    return Split(train, held_out, tuple(data), tuple(report))


def _expanded(split: Split[Row], expand: Callable[[Row], list[Other]]) -> Split[Other]:
    train = tuple(new for row in split.train for new in expand(row))
    held_out = tuple(new for row in split.held_out for new in expand(row))
    return Split(train, held_out, split.data, split.report)


def _prompt_of(row: object) -> Prompt:
    prompt: Prompt = row if isinstance(row, tuple) else row.prompt  # type: ignore[attr-defined]
    return prompt


def _pairs_digest(pairs: Sequence[Preference]) -> str:
    return rows_digest(map(preference_row, pairs))


def _demo_preferences(count: int, seed: int) -> list[Preference]:
    """Imported here because the demo domain is made of this package's own types."""
    return list(import_module("training.demo").demo_preferences(count, seed)) if count else []


def _demo_prompts(count: int, seed: int) -> list[Prompt]:
    return list(import_module("training.demo").demo_prompts(count, seed)) if count else []
