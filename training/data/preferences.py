"""What people and judges say about replies: comparisons, rankings, ratings, and the prompts themselves.

JSON lines, gzipped or plain. Columns in brackets may be left out.

    preferences  {"prompt", "chosen", "rejected", ["preference_strength", "soft", "objective", "rater", "id"]}
    rankings     {"prompt", "replies": [best … worst], ["ranks", "objective", "rater", "id"]}
    hh           {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}   the last turns differ
    ratings      {"prompt", "reply", "label": true|false and/or "score": number, ["objective", "rater", "id"]}
    prompts      {"prompt"}

A prompt is a text (one user message) or a list of messages that ends with the user's; rows without it may
have "instruction" and "input" instead. `columns` renames a file's own columns to these. An empty or
malformed row is an error with its file and line, unless the caller collects such errors in `skipped`.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from training.data.conversation import Conversation, Message, Role
from training.data.formats import read_rows
from training.errors import DataError

Prompt = tuple[Message, ...]
"""An optional system message, then user and assistant in turns; the user's message is the last."""

ComparisonFormat = Literal["preferences", "rankings", "hh"]

_Row = TypeVar("_Row")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")
_REPLY = Message("assistant", "-")


def as_prompt(source: str | Sequence[Message] | Sequence[Mapping[str, str]]) -> Prompt:
    """A text, messages, or role/content mappings as a prompt; raises ValueError for what isn't one."""
    if isinstance(source, str):
        return check_prompt((Message("user", source),))
    return check_prompt(tuple(m if isinstance(m, Message) else _message(m) for m in source))


def check_prompt(prompt: Prompt) -> Prompt:
    """The prompt itself; raises ValueError where it could not be answered."""
    if not prompt or prompt[-1].role != "user":
        raise ValueError("a prompt ends with a user message")
    problem = Conversation((*prompt, _REPLY)).problem()
    if problem is not None:
        raise ValueError(f"prompt: {problem}")
    return prompt


def prompt_as_json(prompt: Prompt) -> str | list[dict[str, str]]:
    """The prompt as a row holds it: a text where it is one user message, else messages."""
    if len(prompt) == 1:
        return prompt[0].content
    return [{"role": m.role, "content": m.content} for m in prompt]


@dataclass(frozen=True, slots=True)
class Preference:
    """Of two replies to one prompt, `chosen` is better; raises ValueError for what can't be compared.

    `strength` ≥ 0 says by how much (a reward margin is some scale times it), `soft` in [0.5, 1] how
    likely it is that `chosen` is better, where a judge says so.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    strength: float = 0.0
    objective: str = "overall"
    rater: str | None = None
    id: str | None = None
    soft: float | None = None

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        _check_reply("chosen", self.chosen)
        _check_reply("rejected", self.rejected)
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same reply")
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(f"preference_strength must be a finite number ≥ 0, found {self.strength}")
        if self.soft is not None and not 0.5 <= self.soft <= 1:
            raise ValueError(
                f"soft is the probability that chosen is better, 0.5 to 1, found {self.soft}; "
                "where it is less, exchange the two replies"
            )


@dataclass(frozen=True, slots=True)
class Ranking:
    """K replies to one prompt with their ranks: 0 is best, equal ranks are ties."""

    prompt: Prompt
    replies: tuple[str, ...]
    ranks: tuple[int, ...]
    objective: str = "overall"
    rater: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if len(self.replies) != len(self.ranks):
            raise ValueError(f"{len(self.replies)} replies but {len(self.ranks)} ranks")
        if len(set(self.ranks)) < 2:
            raise ValueError("a ranking needs replies of at least two different ranks")
        for reply in self.replies:
            _check_reply("replies", reply)
        if any(a == b and s != t for (a, s), (b, t) in combinations(self._ranked(), 2)):
            raise ValueError("the same reply has two different ranks")

    def pairs(self) -> list[Preference]:
        """Every pair of replies with different ranks; ties say nothing and give no pair."""
        return [
            Preference(self.prompt, a, b, objective=self.objective, rater=self.rater, id=self.id)
            for (a, s), (b, t) in combinations(sorted(self._ranked(), key=lambda pair: pair[1]), 2)
            if s < t
        ]

    def _ranked(self) -> list[tuple[str, int]]:
        return list(zip(self.replies, self.ranks, strict=True))


Comparison = Preference | Ranking


@dataclass(frozen=True, slots=True)
class Rating:
    """One reply judged alone: `label` says wanted or not, `score` how good (any scale); or both."""

    prompt: Prompt
    reply: str
    label: bool | None = None
    score: float | None = None
    objective: str = "overall"
    rater: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        _check_reply("reply", self.reply)
        if self.label is None and self.score is None:
            raise ValueError("a rating needs a label or a score")
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"score must be a finite number, found {self.score}")


def read_preferences(
    path: Path,
    format: ComparisonFormat = "preferences",
    columns: Mapping[str, str] | None = None,
    skipped: list[DataError] | None = None,
) -> Iterator[Comparison]:
    """The file's comparisons: a Ranking per row of format "rankings", a Preference per row of the others."""
    parsers: dict[ComparisonFormat, Callable[[Mapping[str, Any]], Comparison]] = {
        "preferences": parse_preference,
        "rankings": _ranking,
        "hh": _hh,
    }
    return read_parsed(path, parsers[format], columns, skipped)


def read_ratings(
    path: Path, columns: Mapping[str, str] | None = None, skipped: list[DataError] | None = None
) -> Iterator[Rating]:
    return read_parsed(path, parse_rating, columns, skipped)


def read_prompts(
    path: Path, columns: Mapping[str, str] | None = None, skipped: list[DataError] | None = None
) -> Iterator[Prompt]:
    """The prompt of each row, whatever else the row holds."""
    return read_parsed(path, _prompt, columns, skipped)


def write_preferences(path: Path, preferences: Iterable[Preference]) -> int:
    """Write the pairs, whole or not at all; returns how many."""
    return write_rows(path, map(preference_row, preferences))


def write_rankings(path: Path, rankings: Iterable[Ranking]) -> int:
    return write_rows(
        path,
        (_row(r, {"replies": list(r.replies), "ranks": list(r.ranks)}) for r in rankings),
    )


def write_ratings(path: Path, ratings: Iterable[Rating]) -> int:
    return write_rows(
        path, (_row(r, {"reply": r.reply, "label": r.label, "score": r.score}) for r in ratings)
    )


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> int:
    return write_rows(path, ({"prompt": prompt_as_json(prompt)} for prompt in prompts))


def preference_row(preference: Preference) -> dict[str, Any]:
    """The pair as one JSON object of format "preferences"; what has its default is left out."""
    return _row(
        preference,
        {
            "chosen": preference.chosen,
            "rejected": preference.rejected,
            "preference_strength": preference.strength or None,
            "soft": preference.soft,
        },
    )


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """JSON lines, gzipped where the name ends with .gz (same rows, same bytes); appears when complete."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    content = "".join(lines).encode("utf-8")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    os.replace(partial, path)
    return len(lines)


def read_parsed(
    path: Path,
    parse: Callable[[Mapping[str, Any]], _Row],
    columns: Mapping[str, str] | None = None,
    skipped: list[DataError] | None = None,
) -> Iterator[_Row]:
    """`parse` of every row. What it refuses by KeyError, TypeError or ValueError is a DataError with file and
    line, or is appended to `skipped`."""
    for number, row in read_rows(path):
        renamed = row | {ours: row[theirs] for ours, theirs in (columns or {}).items() if theirs in row}
        try:
            parsed = parse(renamed)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"missing column {error}" if isinstance(error, KeyError) else str(error)
            bad = DataError(path, number, problem)
            if skipped is None:
                raise bad from error
            skipped.append(bad)
            continue
        yield parsed


def parse_preference(row: Mapping[str, Any]) -> Preference:
    """A row of format "preferences"; raises KeyError, TypeError or ValueError for what is none."""
    return Preference(
        _prompt(row),
        _text(row, "chosen"),
        _text(row, "rejected"),
        strength=_number(row, "preference_strength") or 0.0,
        soft=_number(row, "soft"),
        **_about(row),
    )


def _ranking(row: Mapping[str, Any]) -> Ranking:
    replies = row["replies"]
    if not isinstance(replies, list):
        raise TypeError(f"column 'replies' must be a list, found {type(replies).__name__}")
    ranks = row.get("ranks", list(range(len(replies))))
    if not isinstance(ranks, list) or not all(type(rank) is int and rank >= 0 for rank in ranks):
        raise TypeError("column 'ranks' must be a list of whole numbers, 0 for the best")
    texts = tuple(_text({"replies": reply}, "replies") for reply in replies)
    return Ranking(_prompt(row), texts, tuple(ranks), **_about(row))


def _hh(row: Mapping[str, Any]) -> Preference:
    (*before, chosen), (*same, rejected) = _hh_turns(row, "chosen"), _hh_turns(row, "rejected")
    if chosen.role != "assistant" or rejected.role != "assistant":
        raise ValueError("the dialogue does not end with the assistant")
    if before != same:
        raise ValueError("chosen and rejected are not the same dialogue up to their last turns")
    return Preference(check_prompt(tuple(before)), chosen.content, rejected.content, **_about(row))


def _hh_turns(row: Mapping[str, Any], column: str) -> list[Message]:
    head, *parts = _HH_TURN.split("\n\n" + _text(row, column))
    if head.strip() or not parts:
        raise ValueError(f"column {column!r} must begin with 'Human:' and hold its turns")
    speakers: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return [Message(speakers[s], t.strip()) for s, t in zip(parts[::2], parts[1::2], strict=True)]


def parse_rating(row: Mapping[str, Any]) -> Rating:
    """A row of format "ratings"; raises KeyError, TypeError or ValueError for what is none."""
    label = row.get("label")
    if label is not None and not isinstance(label, bool):
        raise TypeError(f"column 'label' must be true or false, found {label!r}")
    return Rating(_prompt(row), _text(row, "reply"), label, _number(row, "score"), **_about(row))


def _prompt(row: Mapping[str, Any]) -> Prompt:
    if "prompt" not in row and "instruction" in row:
        context = _text(row, "input") if row.get("input") else ""
        return as_prompt("\n".join(filter(None, (_text(row, "instruction"), context))))
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return as_prompt(prompt.strip())
    if not isinstance(prompt, list):
        raise TypeError(f"column 'prompt' must be a text or messages, found {type(prompt).__name__}")
    return as_prompt(prompt)


def _message(source: Mapping[str, str]) -> Message:
    if not isinstance(source, Mapping):
        raise TypeError(f"a message has a role and a content, found {type(source).__name__}")
    role, content = source["role"], source["content"]
    if role not in get_args(Role):
        raise ValueError(f"unknown role {role!r}; roles are {', '.join(get_args(Role))}")
    if not isinstance(content, str):
        raise TypeError(f"a message's content must be a string, found {type(content).__name__}")
    return Message(cast(Role, role), content.strip())


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise TypeError(f"column {column!r} must be a string, found {type(value).__name__}")
    return value.strip()


def _number(row: Mapping[str, Any], column: str) -> float | None:
    value = row.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"column {column!r} must be a number, found {value!r}")
    return float(value)


def _about(row: Mapping[str, Any]) -> dict[str, Any]:
    about = {name: row[name] for name in ("objective", "rater", "id") if row.get(name) is not None}
    for name, value in about.items():
        if not isinstance(value, str | int):
            raise TypeError(f"column {name!r} must be a string, found {value!r}")
    return {name: str(value) for name, value in about.items()}


def _check_reply(name: str, reply: str) -> None:
    if not reply.strip():
        raise ValueError(f"{name}: an empty reply")


def _row(source: Comparison | Rating, content: Mapping[str, Any]) -> dict[str, Any]:
    about = {
        "objective": None if source.objective == "overall" else source.objective,
        "rater": source.rater,
        "id": source.id,
    }
    kept = {name: value for name, value in {**content, **about}.items() if value is not None}
    return {"prompt": prompt_as_json(source.prompt), **kept}
