"""Data files: gzipped or plain JSON lines in one of four formats, read into conversations.

    demonstrations     {"instruction": …, "input": … (optional), "output": …}
    prompt_completion  {"prompt": …, "completion": …}
    turns              {"turns": ["…", "…"]}                    the user speaks first
    messages           {"messages": [{"role": …, "content": …}]}

`columns` in a source renames a file's own columns to these; `difficulty: NAME` there names a column of
numbers, by which a curriculum may be ordered. An empty or malformed row is an error with
its file and line, unless the source says `on_bad_row: skip`; skipped rows are counted.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from training.data.conversation import Conversation, Message, Role, Supervise
from training.errors import DataError

Format = Literal["demonstrations", "prompt_completion", "turns", "messages"]


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The file's rows with their line numbers; blank lines are an error like any other malformed row."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(path, number, f"not valid JSON: {error.msg}") from error
                if not isinstance(row, dict):
                    raise DataError(path, number, f"expected an object, found {type(row).__name__}")
                yield number, row
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error


def read_conversations(
    path: Path,
    file_format: Format,
    columns: Mapping[str, str] | None = None,
    supervise: Supervise = "assistant",
    skipped: list[DataError] | None = None,
) -> Iterator[Conversation]:
    """Every row of `path` as a conversation.

    `columns` maps a format's column to the file's own name for it. With `skipped` given, bad rows are
    appended to it and passed over; without it the first one is raised.
    """
    parse = _PARSERS[file_format]
    for number, row in read_rows(path):
        renamed = row | {ours: row[theirs] for ours, theirs in (columns or {}).items() if theirs in row}
        try:
            difficulty = _number(renamed, "difficulty") if "difficulty" in (columns or {}) else None
            conversation = Conversation(tuple(parse(renamed)), supervise, difficulty)
            problem = conversation.problem()
        except (KeyError, TypeError, ValueError) as error:
            problem = f"missing column {error}" if isinstance(error, KeyError) else str(error)
        if problem is None:
            yield conversation
            continue
        bad = DataError(path, number, problem)
        if skipped is None:
            raise bad
        skipped.append(bad)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise TypeError(f"column {column!r} must be a string, found {type(value).__name__}")
    return value.strip()


def _number(row: Mapping[str, Any], column: str) -> float:
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"column {column!r} must be a number, found {value!r}")
    return float(value)


def _demonstration(row: Mapping[str, Any]) -> Iterator[Message]:
    instruction, context = _text(row, "instruction"), _text(row, "input") if row.get("input") else ""
    yield Message("user", f"{instruction}\n{context}" if context else instruction)
    yield Message("assistant", _text(row, "output"))


def _prompt_completion(row: Mapping[str, Any]) -> Iterator[Message]:
    yield Message("user", _text(row, "prompt"))
    yield Message("assistant", _text(row, "completion"))


def _turns(row: Mapping[str, Any]) -> Iterator[Message]:
    turns = row["turns"]
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise TypeError("column 'turns' must be a list of strings")
    for index, turn in enumerate(turns):
        yield Message("assistant" if index % 2 else "user", turn.strip())


def _messages(row: Mapping[str, Any]) -> Iterator[Message]:
    if not isinstance(row["messages"], list):
        raise TypeError("column 'messages' must be a list")
    for message in row["messages"]:
        role = message["role"]
        if role not in get_args(Role):
            raise ValueError(f"unknown role {role!r}; roles are {', '.join(get_args(Role))}")
        yield Message(role, _text(message, "content"))


_PARSERS: dict[Format, Callable[[Mapping[str, Any]], Iterator[Message]]] = {
    "demonstrations": _demonstration,
    "prompt_completion": _prompt_completion,
    "turns": _turns,
    "messages": _messages,
}
