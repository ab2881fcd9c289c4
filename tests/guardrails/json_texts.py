"""Random JSON, spelled in random ways, with a record of what each piece of the spelling means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from hypothesis import strategies as st

from guardrails.verdict import Action, Finding
from tests.guardrails.reference import merged

_SHORT = dict(zip('"\\/\b\f\n\r\t', '"\\/bfnrt', strict=True))


class Number(NamedTuple):
    """A number or literal, as it is written."""

    text: str


class Unit(NamedTuple):
    """`raw`, which can't be split, shows as `shown`; it is part of `value`, or between values (-1)."""

    raw: str
    shown: str
    value: int = -1
    scalar: bool = False


NUMBERS = ["0", "-0", "7", "12", "-12", "123", "12345", "1e5", "12.50", "-0.5E-3", "true", "false", "null"]


numbers = st.sampled_from(NUMBERS).map(Number)


def json_data(
    texts: st.SearchStrategy[str], numbers: st.SearchStrategy[Number] = numbers
) -> st.SearchStrategy[Any]:
    """Objects (lists of members: a name may be given twice), lists, texts and numbers."""
    return st.recursive(
        texts | numbers,
        lambda inner: st.lists(inner, max_size=4).map(tuple) | st.lists(st.tuples(texts, inner), max_size=4),
        max_leaves=8,
    )


@dataclass
class Spelling:
    """A JSON text, as units."""

    units: list[Unit]

    @property
    def raw(self) -> str:
        return "".join(unit.raw for unit in self.units)

    @property
    def view(self) -> str:
        return "".join(unit.shown for unit in self.units)

    def moderated(self, findings: list[Finding], cuts: list[int]) -> str:
        """What findings and cuts in the view make of the raw text."""
        starts, shown = [0], list[int]()  # of each unit; the unit of each character of the view
        for index, unit in enumerate(self.units):
            starts.append(starts[-1] + len(unit.raw))
            shown += [index] * len(unit.shown)
        placed, raw_cuts = [], [len(self.raw)]
        for finding in findings:
            within = shown[finding.start : finding.end]
            if Action.REDACT <= finding.action <= Action.REWRITE:
                placed += self._placed(finding, within, starts)
            else:
                placed.append(replace(finding, start=starts[within[0]], end=starts[within[-1] + 1]))
        for cut in cuts:
            unit = self.units[shown[cut]]
            whole = unit.scalar and self.units[shown[cut] - 1].value == unit.value
            first = self._value(unit.value)[0] if whole else shown[cut]
            raw_cuts.append(starts[first])

        def encode(at: int, text: str) -> str:
            quoted = json.dumps(text, ensure_ascii=False)
            scalar = any(start == at and u.scalar for start, u in zip(starts, self.units, strict=False))
            return quoted if scalar else quoted[1:-1]

        return merged(self.raw, placed, min(raw_cuts), encode)

    def _placed(self, finding: Finding, within: list[int], starts: list[int]) -> Iterator[Finding]:
        values = dict.fromkeys(self.units[i].value for i in within if self.units[i].value >= 0)
        for number, value in enumerate(values):
            own = [i for i in within if self.units[i].value == value]
            scalar = self.units[own[0]].scalar
            if scalar:
                own = self._value(value)
            text = finding.replacement if number == 0 or scalar else ""
            yield replace(finding, start=starts[own[0]], end=starts[own[-1] + 1], replacement=text)

    def _value(self, value: int) -> list[int]:
        return [i for i, unit in enumerate(self.units) if unit.value == value]


def spell(data: Any, random: Random) -> Spelling:
    """`data` with random white space and escapes."""
    speller = _Speller(random)
    return Spelling([*speller.space(), *speller.value(data), *speller.space()])


class _Speller:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.values = 0

    def space(self) -> list[Unit]:
        return [Unit(self.random.choice(" \t\n\r"), "")] * self.random.choice([0, 0, 0, 0, 1, 2])

    def value(self, data: Any) -> Iterator[Unit]:
        if isinstance(data, str):
            yield from self.string(data, "\n")
        elif isinstance(data, Number):
            self.values += 1
            yield from (Unit(char, char, self.values, True) for char in data.text)
            yield Unit("", "\n")
        else:
            members = isinstance(data, list)
            yield Unit("{" if members else "[", "")
            yield from self.space()
            for index, item in enumerate(data):
                yield from [Unit(",", ""), *self.space()] if index else ()
                if members:
                    yield from [*self.string(item[0], ": "), *self.space(), Unit(":", ""), *self.space()]
                yield from self.value(item[1] if members else item)
                yield from self.space()
            yield Unit("}" if members else "]", "")

    def string(self, text: str, after: str) -> Iterator[Unit]:
        self.values += 1
        yield Unit('"', "")
        often = self.random.choice([0, 0.1, 0.9])
        for char in text:
            raw = self.char(char, often)
            lone = raw != char and "\ud800" <= char <= "\udfff"
            yield Unit(raw, "\ufffd" if lone else char, self.values)
        yield Unit('"', after)

    def char(self, char: str, often: float) -> str:
        if char in '"\\' or char < " " or self.random.random() < often:
            if char in _SHORT and self.random.random() < 0.5:
                return f"\\{_SHORT[char]}"
            units = char.encode("utf-16-be", "surrogatepass").hex()
            if self.random.random() < 0.5:
                units = units.upper()
            return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
        return char
