"""YAML as data that knows where it stands in its file.

The schema is YAML 1.2's core: `no` and `on` are words, `2026-01-01` is text, `0777` is a number in base
ten. Refused, because a policy must say one thing to everybody who reads it: keys given twice, several
documents in one file, tags, and aliases that unfold into more than a person could have written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from policies.errors import Fault, Loc, PolicyError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 40
MAX_NODES = 50_000

_STR, _NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{t}" for t in ("str", "null", "bool", "int", "float"))
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Document:
    """A file's data, and where each of its keys and values stands.

    `keys` holds the places of mapping keys, `values` those of values, both by their path from the root.
    """

    data: Any
    keys: dict[Loc, Mark]
    values: dict[Loc, Mark]

    def find(self, loc: Loc, *, key: bool = False) -> Mark:
        """The place of `loc`'s value (or of its key), or of the nearest thing around it."""
        if key and loc in self.keys:
            return self.keys[loc]
        while loc and loc not in self.values:
            loc = loc[:-1]
        return self.values.get(loc, Mark(1, 1))


class _Loader(yaml.SafeLoader):
    """Composes nodes only; constructs nothing."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Loader.yaml_implicit_resolvers = {}
for _tag, _expression, _first in (
    (_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (_FLOAT, r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    (_MERGE, r"<<", "<"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_expression})$"), list(_first))


def read_document(path: Path) -> Document:
    """The document in `path`. Raises `PolicyError`, also when the file can't be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyError([Fault(path, 1, 1, f"can't be read: {error.strerror or error}")]) from None
    if len(raw) > MAX_BYTES:
        raise PolicyError(
            [Fault(path, 1, 1, f"is larger than {MAX_BYTES // 1024} KiB, which no policy needs")]
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PolicyError([Fault(path, line, 1, "is not UTF-8; save it as UTF-8")]) from None
    return parse_document(text, path)


def parse_document(text: str, path: Path) -> Document:
    """The document in `text`; `path` is for the messages. Raises `PolicyError`."""
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = _mark(mark) if mark else Mark(1, 1)
        message = ": ".join(part for part in (error.context, error.problem) if part)
        if error.context == "expected a single document in the stream":
            message = "a second document begins here; give each its own file"
        raise PolicyError([Fault(path, at.line, at.column, f"not valid YAML: {message}")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise PolicyError([Fault(path, line, 1, f"character U+{code:04X} is not allowed in YAML")]) from None
    if root is None:
        raise PolicyError([Fault(path, 1, 1, "is empty; it needs at least a 'name'")])
    reader = _Reader(path)
    data = reader.convert(root, ())
    if reader.faults:
        raise PolicyError(reader.faults)
    return Document(data, reader.keys, reader.values)


def _mark(mark: yaml.Mark) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)


class _Reader:
    """Turns nodes into data, and remembers where each came from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: dict[Loc, Mark] = {}
        self.values: dict[Loc, Mark] = {}
        self.faults: list[Fault] = []
        self._open: set[int] = set()
        self._nodes = 0

    def convert(self, node: Node, loc: Loc) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise PolicyError(
                [self._fault(node, f"unfolds into more than {MAX_NODES} values; use fewer aliases")]
            )
        if id(node) in self._open:
            raise PolicyError([self._fault(node, "an alias stands inside what it names")])
        self.values[loc] = _mark(node.start_mark)
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, loc)
            if isinstance(node, SequenceNode):
                return self._sequence(node, loc)
            return self._scalar(node)  # type: ignore[arg-type]  # the third and last kind of node
        finally:
            self._open.discard(id(node))

    def _fault(self, node: Node, message: str) -> Fault:
        mark = _mark(node.start_mark)
        return Fault(self.path, mark.line, mark.column, message)

    def _mapping(self, node: MappingNode, loc: Loc) -> dict[str, Any]:
        if node.tag != "tag:yaml.org,2002:map":
            self.faults.append(self._fault(node, f"tag {node.tag!r} is not used in policies"))
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged |= self._merge(value_node, loc)
                continue
            if not isinstance(key_node, ScalarNode):
                self.faults.append(self._fault(key_node, "a key must be a plain word"))
                continue
            key = self._text(key_node)
            if key in own:
                first = self.keys[(*loc, key)].line
                self.faults.append(
                    self._fault(key_node, f"key {key!r} is given twice (first on line {first})")
                )
                continue
            self.keys[(*loc, key)] = _mark(key_node.start_mark)
            own[key] = self.convert(value_node, (*loc, key))
        return merged | own

    def _merge(self, node: Node, loc: Loc) -> dict[str, Any]:
        """What `<<` brings in; of several mappings, earlier ones win. Own keys always win."""
        sources = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Any] = {}
        here = self.values[loc]
        for source in sources:
            if not isinstance(source, MappingNode):
                self.faults.append(self._fault(source, "'<<' needs an alias of a mapping"))
                continue
            merged = self.convert(source, loc) | merged
        self.values[loc] = here
        return merged

    def _sequence(self, node: SequenceNode, loc: Loc) -> list[Any]:
        if node.tag != "tag:yaml.org,2002:seq":
            self.faults.append(self._fault(node, f"tag {node.tag!r} is not used in policies"))
        return [self.convert(item, (*loc, index)) for index, item in enumerate(node.value)]

    def _scalar(self, node: ScalarNode) -> Any:
        value = str(node.value)
        try:
            if node.tag == _NULL:
                return None
            if node.tag == _BOOL:
                return value.lower() == "true"
            if node.tag == _INT:
                return int(value, {"0x": 16, "0o": 8}.get(value[:2], 10))
            if node.tag == _FLOAT:
                return float(value)
        except ValueError:
            self.faults.append(self._fault(node, f"{value[:40]!r} is not a number"))
            return None
        if node.tag != _STR:
            self.faults.append(self._fault(node, f"tag {node.tag!r} is not used in policies"))
        return self._text(node)

    def _text(self, node: ScalarNode) -> str:
        value = str(node.value)
        if any("\ud800" <= character <= "\udfff" for character in value):
            self.faults.append(self._fault(node, "holds half of a surrogate pair, which is no character"))
            return value.encode("utf-8", "replace").decode()
        return value
