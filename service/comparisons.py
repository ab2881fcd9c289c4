"""Comparing two replies, blind: what is shown, what is kept, and where the pairs come from.

Pairs come from a file (`keel feedback import-pairs`), and from conversations that are kept with their texts:
two replies to one prompt, of two arms, of a shadow arm, of two policies, or two choices of one request.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from random import SystemRandom
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from service.active import Candidate, choose
from service.feedback import pseudonym
from service.http import Call
from service.openai.errors import BadRequest, NotFound, Unavailable
from service.openai.types import Integer, Number, Str
from service.store.database import Database, StoreError
from service.store.writer import Row, Writer
from service.telemetry.metrics import Metrics, child

LOOKED_AT = 2_000  # newest pairs, and newest texts, that are looked at
MINE_EVERY_S = 10.0


class JudgementRequest(BaseModel):
    """`POST /v1/comparisons`: which of the two that were shown is better.

    left:     the token that came with the pair: which of the two stood on the left
    choice:   "left", "right", "tie", or "skip" with a `reason`
    strength: 1 slightly, 2 clearly, 3 much
    """

    model_config = ConfigDict(extra="forbid")

    pair: Str = Field(min_length=1, max_length=40)
    left: Literal["first", "second"]
    choice: Literal["left", "right", "tie", "skip"]
    strength: Integer = Field(default=1, ge=1, le=3)
    reason: Literal["", "both_bad", "unclear", "not_my_field", "harmful", "other"] = ""
    seconds: Number | None = Field(default=None, ge=0, le=86_400)


class ComparisonReceipt(BaseModel):
    """A judgement was kept."""

    object: Literal["comparison"] = "comparison"
    pair: str
    choice: str


class ComparisonAnswer(BaseModel):
    """A pair to compare, None where there is none left, and how many this rater has judged."""

    pair: dict[str, Any] | None
    judged: int
    left: int


class Comparisons:
    """The two endpoints' handlers, for a rater."""

    def __init__(self, database: Database, writer: Writer, metrics: Metrics, secret: bytes) -> None:
        self._database = database
        self._writer = writer
        self._metrics = metrics
        self._secret = secret
        self._rng = SystemRandom()
        self._mined = -MINE_EVERY_S

    async def next(self, call: Call) -> Mapping[str, Any]:
        """The pair that this rater should see next, its sides in random order."""
        rater = pseudonym(self._secret, call.caller)
        try:
            await self._mine()
            candidates, judged = await self._candidates(rater)
            chosen = choose(candidates, self._rng)
            pair = None if chosen is None else await self._pair(chosen.id)
        except StoreError as error:
            raise Unavailable(f"pairs can't be read at present: {error}", code="store_failed") from error
        shown = None if pair is None else _shown(pair, self._rng.choice(("first", "second")))
        return {"pair": shown, "judged": judged, "left": len(candidates)}

    async def judge(
        self, call: Call, request: JudgementRequest, payload: dict[str, Any]
    ) -> Mapping[str, Any]:
        """Keep a judgement; judging a pair again replaces it. Raises `NotFound`, `BadRequest`."""
        if (request.choice == "skip") != bool(request.reason):
            raise BadRequest("a skip has a 'reason', and nothing else has one", param="reason")
        try:
            pair = await self._pair(request.pair)
            if pair is None:
                raise NotFound("there is no such pair", param="pair")
            await self._writer.write("judgements", self._row(call, request))
        except StoreError as error:
            raise Unavailable(f"the judgement can't be stored: {error}", code="store_failed") from error
        policy = (pair["first_about"] or {}).get("policy") or "imported"
        child(self._metrics.feedback, policy, "comparison").inc()
        return ComparisonReceipt(pair=request.pair, choice=request.choice).model_dump()

    def _row(self, call: Call, request: JudgementRequest) -> Row:
        other = "second" if request.left == "first" else "first"
        choice = {"left": request.left, "right": other}.get(request.choice, request.choice)
        return {
            "pair_id": request.pair,
            "rater": pseudonym(self._secret, call.caller),
            "choice": choice,
            "strength": request.strength if request.choice in ("left", "right") else 0,
            "reason": request.reason,
            "left": request.left,
            "seconds": request.seconds,
            "at": time.time(),
        }

    async def _candidates(self, rater: str) -> tuple[list[Candidate], int]:
        from sqlalchemy import Integer as SqlInteger
        from sqlalchemy import case, cast, func, select

        from service.store.comparisons import judgements, pairs

        def votes(choice: str) -> Any:
            return cast(
                func.coalesce(func.sum(case((judgements.c.choice == choice, 1), else_=0)), 0), SqlInteger
            )

        newest = (
            select(pairs.c.id, pairs.c.gap, pairs.c.at)
            .order_by(pairs.c.at.desc())
            .limit(LOOKED_AT)
            .subquery()
        )
        own = select(judgements.c.pair_id).where(judgements.c.rater == rater)
        query = (
            select(newest.c.id, newest.c.gap, votes("first"), votes("second"), votes("tie"))
            .select_from(newest.outerjoin(judgements, judgements.c.pair_id == newest.c.id))
            .where(newest.c.id.not_in(own))
            .group_by(newest.c.id, newest.c.gap)
        )
        count = select(func.count()).select_from(judgements).where(judgements.c.rater == rater)
        async with self._database.read() as connection:
            found = [Candidate(*row) for row in await connection.execute(query)]
            judged = (await connection.execute(count)).scalar_one()
        return found, judged

    async def _pair(self, name: str) -> Row | None:
        from sqlalchemy import select

        from service.store.comparisons import pairs

        async with self._database.read() as connection:
            row = (await connection.execute(select(pairs).where(pairs.c.id == name))).mappings().first()
        return None if row is None else dict(row)

    async def _mine(self) -> None:
        """Make pairs of what was kept since: now and then, when somebody asks."""
        now = time.monotonic()
        if now - self._mined < MINE_EVERY_S:
            return
        self._mined = now
        from sqlalchemy import select

        from service.store.completions import completions
        from service.store.feedback import texts
        from service.store.rewards import rewards

        of_completion = completions.c.completion_id == texts.c.completion_id
        of_reward = rewards.c.completion_id == texts.c.completion_id
        query = (
            select(
                texts,
                *(completions.c[name] for name in ("checkpoint", "arm", "experiment", "reward")),
                rewards.c.reward.label("scored"),
            )
            .select_from(texts.outerjoin(completions, of_completion).outerjoin(rewards, of_reward))
            .order_by(texts.c.at.desc())
            .limit(LOOKED_AT)
        )
        async with self._database.read() as connection:
            kept = [dict(row) for row in (await connection.execute(query)).mappings()]
        for row in pairs_of(kept):
            self._writer.put("pairs", row)
        await self._writer.flush()


def pairs_of(kept: Sequence[Row]) -> Iterable[Row]:
    """Rows for pairs of different replies to one prompt: each reply with the next that differs."""
    by_prompt: dict[str, list[tuple[str, Row]]] = {}
    for row in kept:
        for reply in row["replies"]:
            group = by_prompt.setdefault(row["prompt_digest"], [])
            if reply.strip() and all(reply != known for known, _ in group):
                group.append((reply, row))
    for group in by_prompt.values():
        for (first, one), (second, other) in itertools.pairwise(group):
            same = one["completion_id"] == other["completion_id"]
            gap = None if same else _gap(one, other)
            source = "samples" if same else "arms" if one["arm"] or other["arm"] else "policies"
            yield pair_row(one["prompt"], first, second, source, about=(_about(one), _about(other)), gap=gap)


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
        "at": time.time(),
    }


def _about(row: Row) -> Row:
    names = ("completion_id", "policy", "checkpoint", "arm")
    return {name: row[name] for name in names if row[name] is not None}


def _shown(pair: Row, left: str) -> Row:
    """What a rater sees: nothing that tells who wrote which."""
    right = "second" if left == "first" else "first"
    return {
        "id": pair["id"],
        "objective": pair["objective"],
        "prompt": pair["prompt"],
        "left": left,
        "replies": {"left": pair[left], "right": pair[right]},
    }
