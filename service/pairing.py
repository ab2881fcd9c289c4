"""Rows of the table of pairs: two replies to one prompt, and what is known of them."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence

import orjson

from service.store.writer import Row

RERANKED = "rerank"
"""The source of pairs that a reward model made: the first reply is the better one, and nobody is asked."""


def pairs_of(kept: Sequence[Row]) -> Iterable[Row]:
    """Rows for pairs of different replies to one prompt: each reply with the next that differs."""
    by_prompt: dict[str, list[tuple[str, Row]]] = {}
    for row in kept:
        for reply in row["replies"]:
            group = by_prompt.setdefault(row["prompt_digest"], [])
            text = reply.strip()
            if text and all(text != known for known, _ in group):
                group.append((text, row))
    for group in by_prompt.values():
        for (first, one), (second, other) in itertools.pairwise(group):
            same = one["completion_id"] == other["completion_id"]
            gap = None if same else _gap(one, other)
            source = "samples" if same else "arms" if one["arm"] or other["arm"] else "policies"
            yield pair_row(
                one["prompt"],
                first,
                second,
                source,
                about=(_about(one), _about(other)),
                gap=gap,
                at=min(one["at"], other["at"]),  # it is kept no longer than what it was made of
            )


def _gap(one: Row, other: Row) -> float | None:
    """The first reply's reward less the second's, by the scorer of their experiment, else by reranking."""
    scored = (one["scored"], other["scored"])
    if None not in scored and one["experiment"] == other["experiment"]:
        return float(scored[0] - scored[1])
    ranked = (one["reward"], other["reward"])
    return None if None in ranked else float(ranked[0] - ranked[1])


def pair_row(
    prompt: Sequence[Mapping[str, str]],
    first: str,
    second: str,
    source: str,
    *,
    about: tuple[Row, Row] = ({}, {}),
    gap: float | None = None,
    objective: str = "overall",
    at: float | None = None,
) -> Row:
    """A row of the pairs' table; its id is the same whichever reply comes first."""
    content = orjson.dumps([list(prompt), sorted((first, second)), objective])
    return {
        "id": hashlib.sha256(content).hexdigest()[:40],
        "source": source,
        "objective": objective,
        "prompt": list(prompt),
        "first": first,
        "second": second,
        "first_about": about[0],
        "second_about": about[1],
        "gap": gap,
        "at": time.time() if at is None else at,
    }


def _about(row: Row) -> Row:
    names = ("completion_id", "policy", "checkpoint", "arm")
    return {name: row[name] for name in names if row[name] is not None}
