"""Constitutions: what a reply must keep to, written as principles that a model can criticise and revise by.

One YAML file is one constitution. Training reads it to make data (Bai et al. 2022, arXiv:2212.08073), a
judge reads it to say which principles a reply violates, and the gateway may do both while it answers. It
is read like a policy: frozen, unknown keys refused, everything wrong told with file, line and column.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from policies.base import Frozen, Name, Text
from policies.document import Document, parse_document, read_document
from policies.errors import Fault, PolicyError, Problem, located
from policies.explain import explain

SHIPPED = Path(__file__).parent / "constitutions"
"""The constitutions that come with Keel."""

Severity = Literal["low", "medium", "high", "critical"]
WEIGHTS: dict[Severity, float] = {"low": 0.1, "medium": 0.3, "high": 0.7, "critical": 1.0}
"""How much a violation counts, between 0 and 1; what a reader compares, not a probability."""


def _critique_request(given: dict[str, Any]) -> str:
    return f"Does the reply violate this principle? {given['text']} Quote what violates it, and say why."


def _revision_request(given: dict[str, Any]) -> str:
    return (
        f"Rewrite the reply so that it keeps to this principle: {given['text']} "
        "Change nothing else, and don't mention the principle."
    )


class Principle(Frozen):
    """One rule. The two requests are what a model is asked; left out, they are made from `text`."""

    id: Name
    text: Text
    severity: Severity = "medium"
    critique_request: Text = Field(default_factory=_critique_request)
    revision_request: Text = Field(default_factory=_revision_request)


class Constitution(Frozen):
    """Principles in the order in which they are read; each has an id of its own."""

    name: Name
    description: str = ""
    principles: Annotated[tuple[Principle, ...], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        if problems := list(self._used_twice()):
            raise located(problems)
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(principle.id for principle in self.principles)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the content as JSON with sorted keys and no white space; changes when it does."""
        canonical = json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def text(self) -> str:
        """All principles, a line each, with their ids: what a judge is shown."""
        return "\n".join(f"[{p.id}] {p.text}" for p in self.principles)

    def principle(self, key: str) -> Principle:
        """The principle with id `key`. Raises KeyError, which names those there are."""
        for principle in self.principles:
            if principle.id == key:
                return principle
        raise KeyError(f"constitution {self.name!r} has no principle {key!r}; it has: {', '.join(self.ids)}")

    def only(self, keys: Iterable[str]) -> Constitution:
        """The same constitution with the principles `keys` alone, in its own order. Raises KeyError."""
        wanted = {self.principle(key).id for key in keys}
        return self.model_copy(update={"principles": tuple(p for p in self.principles if p.id in wanted)})

    @classmethod
    def load(cls, source: str | Path) -> Constitution:
        """A shipped constitution by its name, or the one in a YAML file. Raises `PolicyError`."""
        return load_constitution(source)

    def _used_twice(self) -> Iterator[Problem]:
        seen: set[str] = set()
        for index, key in enumerate(self.ids):
            if key in seen:
                yield Problem(("principles", index, "id"), f"{key!r} is used twice; every id is used once")
            seen.add(key)


def shipped() -> tuple[str, ...]:
    """Names of the constitutions that come with Keel."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def load_constitution(source: str | Path) -> Constitution:
    """The constitution called `source`, or in file `source` (anything with a suffix or a folder).

    Raises `PolicyError` with everything that is wrong, each with file, line and column.
    """
    path = Path(source)
    if isinstance(source, str) and path.name == source and not path.suffix:
        if source not in shipped():
            known = ", ".join(shipped())
            message = f"there is no constitution {source!r}; shipped are: {known}; or give a file's path"
            raise PolicyError([Fault(SHIPPED, 1, 1, message)])
        path = SHIPPED / f"{source}.yaml"
    return _validated(read_document(path), path)


def parse_constitution(text: str, where: str | Path = "constitution.yaml") -> Constitution:
    """The constitution in YAML `text`; `where` is for the messages. Raises `PolicyError`."""
    return _validated(parse_document(text, Path(where)), Path(where))


def _validated(document: Document, path: Path) -> Constitution:
    try:
        return Constitution.model_validate(document.data)
    except ValidationError as error:
        raise PolicyError(explain(error, document, path, Constitution)) from None
