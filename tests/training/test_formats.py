"""Data files: every format, and errors that name file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from training.data.conversation import Conversation, Message
from training.data.formats import Format, read_conversations
from training.errors import DataError


def write(path: Path, *rows: object) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def asked(user: str, assistant: str) -> tuple[Message, ...]:
    return (Message("user", user), Message("assistant", assistant))


@pytest.mark.parametrize(
    ("file_format", "row", "messages"),
    [
        ("demonstrations", {"instruction": "Add.", "input": "1 2", "output": "3"}, asked("Add.\n1 2", "3")),
        ("demonstrations", {"instruction": "Hi", "input": "", "output": " Hello "}, asked("Hi", "Hello")),
        ("demonstrations", {"instruction": "Hi", "output": "Hello"}, asked("Hi", "Hello")),
        ("prompt_completion", {"prompt": "Hi", "completion": "Hello"}, asked("Hi", "Hello")),
        ("turns", {"turns": ["a", "b", "c", "d"]}, asked("a", "b") + asked("c", "d")),
        (
            "messages",
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                          {"role": "assistant", "content": "b"}]},
            (Message("system", "s"), *asked("a", "b")),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_each_format_becomes_a_conversation(
    tmp_path: Path, name: str, file_format: Format, row: object, messages: tuple[Message, ...]
) -> None:
    path = write(tmp_path / name, row)
    assert list(read_conversations(path, file_format)) == [Conversation(messages)]


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"instruction": "Hi", "response": "Hello"})
    found = list(read_conversations(path, "demonstrations", {"output": "response"}))
    assert found == [Conversation(asked("Hi", "Hello"))]


@pytest.mark.parametrize(
    ("file_format", "row", "problem"),
    [
        ("turns", "", "not valid JSON"),
        ("turns", "{", "not valid JSON"),
        ("turns", "[]", "expected an object"),
        ("turns", {"topic": "x"}, "missing column 'turns'"),
        ("turns", {"turns": "ab"}, "list of strings"),
        ("turns", {"turns": ["a", 1]}, "list of strings"),
        ("turns", {"turns": []}, "no turns"),
        ("turns", {"turns": ["a"]}, "no assistant turn"),
        ("turns", {"turns": ["a", "  "]}, "an empty message"),
        ("demonstrations", {"instruction": "a", "output": None}, "must be a string"),
        ("prompt_completion", {"prompt": "a", "completion": ""}, "an empty message"),
        ("messages", {"messages": {}}, "must be a list"),
        ("messages", {"messages": [{"role": "boss", "content": "a"}]}, "unknown role 'boss'"),
        ("messages", {"messages": [{"role": "assistant", "content": "a"}]}, "must alternate"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, file_format: Format, row: object, problem: str
) -> None:
    good = {"turns": ["a", "b"], "instruction": "a", "output": "b", "prompt": "a", "completion": "b"}
    good["messages"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "rows.jsonl", good, row)
    with pytest.raises(DataError, match=problem) as caught:
        list(read_conversations(path, file_format))
    assert str(caught.value).startswith(f"{path}:2: ")


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"turns": ["a", "b"]}, {"turns": []}, {"turns": ["c", "d"]})
    skipped: list[DataError] = []
    assert len(list(read_conversations(path, "turns", skipped=skipped))) == 2
    assert [error.line for error in skipped] == [2]


CUT = gzip.compress(b'{"turns": ["a", "b"]}\n' * 50)[:-9]


@pytest.mark.parametrize("content", [b"not gzip", CUT], ids=["not gzip", "cut off"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: cannot be read"):
        list(read_conversations(path, "turns"))
