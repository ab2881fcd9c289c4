"""Feedback that users gave while the gateway served: one file in, datasets out.

JSON lines, gzipped or plain, as `keel feedback export` writes them. `kind` says what a row is; docs/training/
feedback.md is the contract. Columns in brackets may be left out.

    preference  {"kind", "prompt", "chosen", "rejected", ["preference_strength"]}
    rating      {"kind", "prompt", "reply", "thumb": "up"|"down" and/or "score": number}
    correction  {"kind", "prompt", "reply", "correction": what the reply should have been}

and of all kinds ["objective", "rater", "origin", "id", "checkpoint", "policy", "created"]. A correction is
worth three things: a demonstration, a preference of the correction over the reply, and a reply that was not
wanted.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.data.conversation import Conversation, Message
from training.data.preferences import (
    Preference,
    Prompt,
    Rating,
    parse_preference,
    parse_rating,
    preference_row,
    read_parsed,
    write_preferences,
    write_ratings,
    write_rows,
)
from training.data.quality import Quality, QualityLimits, examine, krippendorff_alpha
from training.errors import DataError, TrainingError

ORIGINS = ("feedback", "comparison", "revision", "rerank")
OWN_TASTE = frozenset({"rerank"})
"""What a reward model preferred: who trains on it learns that model's taste, its faults included."""
_THUMBS = {"up": True, "down": False}
_COMMON = frozenset(
    {"kind", "prompt", "objective", "rater", "origin", "id", "checkpoint", "policy", "created"}
)
_COLUMNS = {
    "preference": _COMMON | {"chosen", "rejected", "preference_strength"},
    "rating": _COMMON | {"reply", "thumb", "score"},
    "correction": _COMMON | {"reply", "correction"},
}


@dataclass(frozen=True, slots=True)
class Feedback:
    """A file's rows as training data; a correction stands in all three lists. `left_out`: rows by origin."""

    preferences: tuple[Preference, ...]
    ratings: tuple[Rating, ...]
    demonstrations: tuple[Conversation, ...]
    kinds: Mapping[str, int]
    checkpoints: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def quality(self, limits: QualityLimits | None = None) -> Quality:
        """The preferences' checks: duplicates, contradictions, agreement of raters, …

        Raises TrainingError where there is no preference to examine.
        """
        if not self.preferences:
            raise TrainingError("the feedback has no preferences to examine")
        return examine(self.preferences, limits=limits or QualityLimits())

    def rating_agreement(self) -> tuple[float | None, int]:
        """Krippendorff's alpha of up and down, and how many replies several raters rated."""
        units: dict[tuple[Prompt, str, str], dict[str, bool]] = {}
        for number, rating in enumerate(self.ratings):
            if rating.label is not None:
                rater = rating.rater or f"unnamed {number}"
                units.setdefault((rating.prompt, rating.reply, rating.objective), {})[rater] = rating.label
        several = [list(unit.values()) for unit in units.values() if len(unit) > 1]
        return krippendorff_alpha(several), len(several)

    def report(self) -> str:
        """Counts and agreement, for the terminal."""
        kinds = ", ".join(f"{count} {kind}s" for kind, count in sorted(self.kinds.items()))
        alpha, several = self.rating_agreement()
        lines = [
            kinds,
            f"{len(self.preferences)} preferences, {len(self.ratings)} ratings, "
            f"{len(self.demonstrations)} demonstrations",
            f"raters of ratings agree: alpha {'–' if alpha is None else f'{alpha:.2f}'} on {several} replies",
        ]
        lines += [f"{count} rows about {name}" for name, count in sorted(self.checkpoints.items())]
        lines += [f"{count} rows of origin {name} left out" for name, count in sorted(self.left_out.items())]
        return "\n".join(lines)


def read_feedback(
    path: Path, skipped: list[DataError] | None = None, origins: Collection[str] | None = None
) -> Feedback:
    """The rows of `path`. A wrong one is a DataError with file and line, or is appended to `skipped`.

    origins: where rows may come from; None takes all but those of `OWN_TASTE`.
    """
    preferences: list[Preference] = []
    ratings: list[Rating] = []
    demonstrations: list[Conversation] = []
    kinds: Counter[str] = Counter()
    checkpoints: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for kind, origin, checkpoint, rows in read_parsed(path, _parse, skipped=skipped):
        if origin not in origins if origins is not None else origin in OWN_TASTE:
            left_out[origin or "unknown"] += 1
            continue
        kinds[kind] += 1
        if checkpoint is not None:
            checkpoints[checkpoint] += 1
        for made in rows:
            if isinstance(made, Preference):
                preferences.append(made)
            elif isinstance(made, Rating):
                ratings.append(made)
            else:
                demonstrations.append(made)
    read = (tuple(preferences), tuple(ratings), tuple(demonstrations))
    return Feedback(*read, kinds, checkpoints, left_out)


def write_datasets(feedback: Feedback, folder: Path) -> dict[str, int]:
    """preferences.jsonl, ratings.jsonl, demonstrations.jsonl, where they have rows; counts by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    if feedback.preferences:
        written["preferences.jsonl"] = write_preferences(folder / "preferences.jsonl", feedback.preferences)
    if feedback.ratings:
        written["ratings.jsonl"] = write_ratings(folder / "ratings.jsonl", feedback.ratings)
    if feedback.demonstrations:
        rows = ({"messages": talk.as_dicts()} for talk in feedback.demonstrations)
        written["demonstrations.jsonl"] = write_rows(folder / "demonstrations.jsonl", rows)
    return written


def feedback_rows(
    preferences: Iterable[Preference] = (), ratings: Iterable[Rating] = ()
) -> Iterable[dict[str, Any]]:
    """Preferences and ratings as rows of this format, e.g. to join the answers of an evaluation by people."""
    for preference in preferences:
        yield {"kind": "preference", **preference_row(preference)}
    for rating in ratings:
        thumb = {True: "up", False: "down", None: None}[rating.label]
        about = {"objective": rating.objective, "rater": rating.rater, "id": rating.id}
        row = {"thumb": thumb, "score": rating.score, **about}
        messages = [{"role": m.role, "content": m.content} for m in rating.prompt]
        kept = {name: value for name, value in row.items() if value is not None}
        yield {"kind": "rating", "prompt": messages, "reply": rating.reply, **kept}


Made = Preference | Rating | Conversation


def _parse(row: Mapping[str, Any]) -> tuple[str, str | None, str | None, list[Made]]:
    """The row's kind, its origin, the checkpoint that it is about, and what it is worth."""
    kind = row.get("kind")
    if kind not in _COLUMNS:
        raise ValueError(f"column 'kind' must be one of {', '.join(_COLUMNS)}, found {kind!r}")
    if unknown := sorted(row.keys() - _COLUMNS[kind]):
        raise ValueError(f"a {kind} has no column {', '.join(map(repr, unknown))}")
    origin, checkpoint = (
        None if row.get(name) is None else str(row[name]) for name in ("origin", "checkpoint")
    )
    return kind, origin, checkpoint, _PARSERS[kind](row)


def _preference(row: Mapping[str, Any]) -> list[Made]:
    return [parse_preference(row)]


def _rating(row: Mapping[str, Any]) -> list[Made]:
    thumb = row.get("thumb")
    if thumb is not None and thumb not in _THUMBS:
        raise ValueError(f"column 'thumb' must be 'up' or 'down', found {thumb!r}")
    return [parse_rating({**row, "label": None if thumb is None else _THUMBS[thumb]})]


def _correction(row: Mapping[str, Any]) -> list[Made]:
    better = parse_preference({**row, "chosen": row["correction"], "rejected": row["reply"]})
    demonstration = Conversation((*better.prompt, Message("assistant", better.chosen)))
    return [better, parse_rating({**row, "label": False}), demonstration]


_PARSERS: dict[str, Callable[[Mapping[str, Any]], list[Made]]] = {
    "preference": _preference,
    "rating": _rating,
    "correction": _correction,
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="keel-train feedback", description="Turn exported feedback into datasets."
    )
    parser.add_argument("file", type=Path, help="what `keel feedback export` wrote")
    parser.add_argument("--folder", type=Path, help="write the datasets here")
    parser.add_argument("--skip-bad-rows", action="store_true", help="count them instead of stopping")
    parser.add_argument(
        "--origin",
        action="append",
        choices=ORIGINS,
        help="take rows of this origin only; may be repeated (default: all but rerank)",
    )
    arguments = parser.parse_args(argv)
    skipped: list[DataError] | None = [] if arguments.skip_bad_rows else None
    feedback = read_feedback(arguments.file, skipped, arguments.origin)
    print(feedback.report())
    if skipped:
        print(f"{len(skipped)} rows skipped, such as {skipped[0]}")
    if feedback.preferences:
        print(feedback.quality().table())
    if arguments.folder is not None:
        for name, count in write_datasets(feedback, arguments.folder).items():
            print(f"{arguments.folder / name}: {count} rows")
    return 0
