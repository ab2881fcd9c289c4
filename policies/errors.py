"""What can be wrong with a policy, told with file, line and column."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic_core import PydanticCustomError

Loc = tuple[str | int, ...]


class Problem(NamedTuple):
    """Something wrong at a place in a policy: `loc` is a path of keys and indices, as pydantic's."""

    loc: Loc
    message: str


def located(problems: Iterable[Problem]) -> PydanticCustomError:
    """One error for pydantic that keeps the place of each problem, for `policies.explain` to tell."""
    found = list(problems)
    summary = "; ".join(problem.message for problem in found)
    return PydanticCustomError("policy", "{summary}", {"summary": summary, "problems": found})


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """A problem at a place in a file; lines and columns count from 1."""

    path: Path
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.message}"


class PolicyError(Exception):
    """Policy files that can't be used. Says everything that is wrong with them, not only the first thing."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(map(str, self.faults)))


class UnknownPolicy(LookupError):
    """No policy has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"there is no policy {name!r}; there are: {', '.join(self.known) or 'none'}")
