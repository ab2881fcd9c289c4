"""What each alias meant before: the moves of a registry's aliases, so that one can be taken back.

    checkpoints/aliases.history.json    {"alias": [{"ref", "previous", "how", "at", "allow"}, …]}

A move is written here before it is made: where a crash comes between the two, the last move tells of what
never was. So the way back is looked for by what the alias means now, not by what stands last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from policies.manifest import MAX_MANIFEST_BYTES, Frozen, Reference, RegistryError

HISTORY_NAME = "aliases.history.json"
KEPT = 50
"""Moves of one alias that are kept."""

How = Literal["point", "promote", "rollback"]
Allowance = Literal["template", "tokenizer"]
"""What may differ from the checkpoint that an alias meant before, because somebody said so."""


class Move(Frozen):
    """An alias that came to mean `ref`; `previous` is None for its first meaning. `at` is in UTC."""

    ref: Reference
    previous: Reference | None = None
    how: How = "point"
    at: datetime
    allow: tuple[Allowance, ...] = ()

    @classmethod
    def now(cls, ref: str, previous: str | None, how: How, allow: tuple[Allowance, ...]) -> Move:
        """A move that is made now."""
        return cls(ref=ref, previous=previous, how=how, at=datetime.now(UTC), allow=allow)


Moves = Mapping[str, tuple[Move, ...]]
_TABLE: TypeAdapter[dict[str, tuple[Move, ...]]] = TypeAdapter(dict[str, tuple[Move, ...]])


def read_history(root: Path) -> dict[str, tuple[Move, ...]]:
    """Every alias' moves, oldest first. Raises RegistryError for a file that isn't that."""
    path = root / HISTORY_NAME
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES * 16 + 1)
        if len(content) > MAX_MANIFEST_BYTES * 16:
            raise RegistryError(f"{path}: too large to be a history of aliases")
        return _TABLE.validate_json(content)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RegistryError(f"{path}: can't be read: {error.strerror}") from error
    except ValidationError as error:
        raise RegistryError(
            f"{path}: no history of aliases ({error.error_count()} problems); move it away to begin a new one"
        ) from error


def with_move(history: Moves, alias: str, move: Move) -> bytes:
    """The history's new content, with at most `KEPT` moves of the alias."""
    moves = (*history.get(alias, ()), move)[-KEPT:]
    table = {**{name: list(made) for name, made in history.items()}, alias: list(moves)}
    dumped = {name: [made.model_dump(mode="json") for made in table[name]] for name in sorted(table)}
    return (json.dumps(dumped, indent=1) + "\n").encode()


def way_back(moves: tuple[Move, ...], current: str) -> str | None:
    """What the alias meant before it came to mean `current`; a rollback's own moves are not undone again.

    So two rollbacks in a row go two steps back.
    """
    for move in reversed(moves):
        if move.ref == current and move.how != "rollback":
            return move.previous
    return None
