"""Sentences from written templates: `texts/*.txt`, a section of lines for each kind of sentence.

A line may hold alternatives, `(one|two|)`, which nest, and slots, `{name}`, which another section or the
caller fills. Brackets without a bar are themselves; `\\n` is a new line, and any other character after a
backslash is itself. A line that starts with `# ` right under a section's name is a remark.

Lines, not sentences, are held out: a line that is kept for the test never appears in training, in any of
its variants.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

FOLDER = Path(__file__).parent / "texts"
HELD_OUT_SHARE = 0.1
SHORT = 8
"""Sections of fewer lines are not split."""
Filler = Callable[[Random], str]

_AN = re.compile(r"\b([Aa]) (?=(?!uni|use|euro|one\b|once|ukr|ut[ie])[aeiou])")
_A = re.compile(r"\b([Aa])n (?=(?!hour|hon|heir|[MNFLSX][A-Z])[b-df-hj-np-tv-zB-DF-HJ-NP-TV-Z])")


@dataclass(frozen=True, slots=True)
class Slot:
    """To be filled by a section or by the caller."""

    name: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several sequences."""

    options: tuple[tuple[Node, ...], ...]


Node = str | Slot | Choice
Line = tuple[Node, ...]


def parse(text: str) -> Line:
    """The nodes of one line. Raises ValueError where a bracket or a slot is never closed."""
    nodes, end = _sequence(text, 0, nested=False)
    if end != len(text):
        raise ValueError(f"{text!r}: a bracket closes at {end} that was never opened")
    return nodes[0]


def _sequence(text: str, at: int, nested: bool) -> tuple[list[Line], int]:
    """Sequences parted by bars up to the closing bracket (or the end), and the offset of that end."""
    options: list[list[Node]] = [[]]
    while at < len(text):
        char = text[at]
        if char == "\\" and at + 1 < len(text):
            options[-1].append("\n" if text[at + 1] == "n" else text[at + 1])
            at += 2
        elif char == "{" and (slot := re.match(r"\{(\w+)\}", text[at:])):
            options[-1].append(Slot(slot[1]))
            at += slot.end()
        elif char == "(" and _has_bar(text, at):
            inner, at = _sequence(text, at + 1, nested=True)
            options[-1].append(Choice(tuple(inner)))
            at += 1
        elif nested and char == ")":
            return [tuple(_joined(o)) for o in options], at
        elif nested and char == "|":
            options.append([])
            at += 1
        elif char == "(" and (close := _closing(text, at)) is not None:
            inner, _ = _sequence(text[at + 1 : close], 0, nested=False)
            options[-1] += ["(", *inner[0], ")"]
            at = close + 1
        else:
            options[-1].append(char)
            at += 1
    if nested:
        raise ValueError(f"{text!r}: an alternative is never closed")
    return [tuple(_joined(o)) for o in options], at


def _joined(nodes: list[Node]) -> list[Node]:
    """Neighbouring characters as one string."""
    joined: list[Node] = []
    for node in nodes:
        if isinstance(node, str) and joined and isinstance(joined[-1], str):
            joined[-1] += node
        else:
            joined.append(node)
    return joined


def _closing(text: str, at: int) -> int | None:
    """Where the bracket that opens at `at` closes."""
    depth = 0
    for i in range(at, len(text)):
        if text[i - 1 : i] == "\\":
            continue
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return None


def _has_bar(text: str, at: int) -> bool:
    depth = 0
    for i in range(at, len(text)):
        if text[i - 1 : i] == "\\":
            continue
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return False
        if depth == 1 and text[i] == "|":
            return True
    return False


def variants(line: Line) -> float:
    """In how many ways the line's own alternatives can be taken; slots count as ten."""
    count = 1.0
    for node in line:
        if isinstance(node, Choice):
            count *= sum(variants(option) for option in node.options)
        elif isinstance(node, Slot):
            count *= 10
    return count


def sections(text: str) -> dict[str, list[str]]:
    """The lines of every `== name` section."""
    found: dict[str, list[str]] = {}
    fresh = False
    name = ""
    for line in text.splitlines():
        if line.startswith("== "):
            name, fresh = line[3:].strip(), True
            found[name] = []
        elif line.startswith("# ") and fresh:
            continue
        elif line.strip():
            found[name].append(line)
            fresh = False
    return found


def held_out(lines: list[str]) -> set[str]:
    """The lines that are kept for the test: a tenth, of the lowest hashes; none of a short section."""
    order = sorted(lines, key=lambda line: hashlib.sha256(line.encode()).digest())
    return set(order[: round(HELD_OUT_SHARE * len(lines))] if len(lines) >= SHORT else ())


@dataclass(frozen=True, slots=True)
class _Section:
    """Lines with weights that grow slowly with their variants, so that short lines are not drilled."""

    lines: tuple[Line, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, lines: list[str]) -> _Section:
        parsed = tuple(parse(line) for line in lines)
        return cls(parsed, tuple(math.sqrt(min(variants(line), 400.0)) for line in parsed))


@cache
def _section(file: str, name: str, part: str) -> _Section:
    """A section's lines: `all` of them, those to `train` on, or those kept for the `test`."""
    lines = read(file)[name]
    kept = held_out(lines)
    if part != "all" and kept:
        lines = [line for line in lines if (line in kept) == (part == "test")]
    return _Section.of(lines)


@dataclass(frozen=True, slots=True)
class Grammar:
    """The sections of `texts/FILE.txt`; `fillers` fill slots that are no section of it."""

    file: str
    fillers: Mapping[str, Filler] = field(default_factory=dict)

    def expand(self, rng: Random, section: str, *, held_out: bool = False, tidy: bool = True) -> str:
        """A sentence of `section`: of its held-out lines, or of its others. Slots are filled by any line."""
        text = self._fill(rng, self._pick(rng, section, "test" if held_out else "train"))
        return correct(text) if tidy else text

    def _pick(self, rng: Random, section: str, part: str) -> Line:
        found = _section(self.file, section, part)
        return rng.choices(found.lines, found.weights)[0]

    def _fill(self, rng: Random, line: Line) -> str:
        pieces = []
        for node in line:
            if isinstance(node, str):
                pieces.append(node)
            elif isinstance(node, Choice):
                pieces.append(self._fill(rng, rng.choice(node.options)))
            elif node.name in self.fillers:
                pieces.append(self.fillers[node.name](rng))
            else:
                pieces.append(self._fill(rng, self._pick(rng, node.name, "all")))
        return "".join(pieces)


@cache
def read(name: str) -> dict[str, list[str]]:
    """The sections of `texts/NAME.txt`."""
    return sections((FOLDER / f"{name}.txt").read_text(encoding="utf-8"))


def load(name: str, **fillers: Filler) -> Grammar:
    """The grammar of `texts/NAME.txt`."""
    return Grammar(name, fillers)


def correct(text: str) -> str:
    """Articles that fit the next word, and no doubled blanks or blanks before punctuation."""
    text = _A.sub(r"\1 ", _AN.sub(r"\1n ", text))
    return re.sub(r" {2,}", " ", re.sub(r" +([,.!?;:])(?=\s|$)", r"\1", text)).strip()


def digest() -> str:
    """Hex SHA-256 over all written texts, for the record of what was trained on."""
    sums = hashlib.sha256()
    for path in sorted(FOLDER.glob("*.txt")):
        sums.update(path.name.encode() + path.read_bytes())
    return sums.hexdigest()
