"""Comparing two replies, blind: what is shown, what is kept, and where the pairs come from.

Pairs come from a file (`keel feedback import-pairs`), and from conversations that are kept with their texts:
two replies to one prompt, of two arms, of a shadow arm, of two policies, or two choices of one request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from random import Random, SystemRandom
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from service.active import Candidate, choose
from service.feedback import pseudonym
from service.http import Call
from service.openai.errors import BadRequest, NotFound, Unavailable
from service.openai.types import Integer, Number, Str
from service.pairing import RERANKED, pairs_of
from service.store.database import Database, StoreError
from service.store.writer import Row, Writer
from service.telemetry.metrics import Metrics, child

LOOKED_AT = 2_000  # newest pairs, and newest texts, that are looked at
MINE_EVERY_S = 10.0
AT_ONCE = 50  # pairs that are stored in one go


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
            rows, judged = await self._candidates(rater)
            chosen = await asyncio.to_thread(_chosen, rows, self._rng)
            pair = None if chosen is None else await self._pair(chosen.id)
        except StoreError as error:
            raise Unavailable("pairs can't be read at present; try again", code="store_failed") from error
        shown = None if pair is None else _shown(pair, self._rng.choice(("first", "second")))
        return {"pair": shown, "judged": judged, "left": len(rows)}

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
            raise Unavailable("the judgement can't be stored; try again", code="store_failed") from error
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

    async def _candidates(self, rater: str) -> tuple[Sequence[Sequence[Any]], int]:
        """What makes a `Candidate`, of each pair that this rater hasn't judged; how many they have."""
        from sqlalchemy import Integer as SqlInteger
        from sqlalchemy import case, cast, func, select

        from service.store.comparisons import judgements, pairs

        def votes(choice: str) -> Any:
            return cast(
                func.coalesce(func.sum(case((judgements.c.choice == choice, 1), else_=0)), 0), SqlInteger
            )

        newest = (
            select(pairs.c.id, pairs.c.gap, pairs.c.at)
            .where(pairs.c.source != RERANKED)
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
            found = (await connection.execute(query)).all()
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
        from sqlalchemy import Text, cast, select

        from service.store.comparisons import pairs
        from service.store.completions import completions
        from service.store.feedback import texts
        from service.store.rewards import rewards

        of_completion = completions.c.completion_id == texts.c.completion_id
        of_reward = rewards.c.completion_id == texts.c.completion_id
        raw = [cast(texts.c[name], Text).label(name) for name in ("prompt", "replies")]
        query = (
            select(
                *(texts.c[name] for name in ("completion_id", "policy", "prompt_digest", "at")),
                *raw,
                *(completions.c[name] for name in ("checkpoint", "arm", "experiment", "reward")),
                rewards.c.reward.label("scored"),
            )
            .select_from(texts.outerjoin(completions, of_completion).outerjoin(rewards, of_reward))
            .order_by(texts.c.at.desc())
            .limit(LOOKED_AT)
        )
        async with self._database.read() as connection:
            kept = (await connection.execute(query)).mappings().all()
            made = await asyncio.to_thread(_paired, kept)
            there = select(pairs.c.id).where(pairs.c.id.in_(list(made)))
            known = set((await connection.execute(there)).scalars())
        fresh = [row for name, row in made.items() if name not in known]
        for start in range(0, len(fresh), AT_ONCE):
            for row in fresh[start : start + AT_ONCE]:
                self._writer.put("pairs", row)
            await self._writer.flush()


def _chosen(rows: Iterable[Sequence[Any]], rng: Random) -> Candidate | None:
    return choose([Candidate(*row) for row in rows], rng)


def _paired(kept: Iterable[Any]) -> dict[str, Row]:
    """Rows of pairs by their ids, from texts as the store has them. Takes a while: not for the loop."""
    read = [
        {**row, "prompt": orjson.loads(row["prompt"]), "replies": orjson.loads(row["replies"])}
        for row in kept
    ]
    return {row["id"]: row for row in pairs_of(read)}


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
