"""The review queue: what guards withheld, and the people who uphold or overturn it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.audit import AuditLog, actor_of
from service.auth import Caller
from service.openai.errors import Conflict, NotFound, Unavailable
from service.store.database import Database, StoreError
from service.telemetry.metrics import Metrics, child

PAGE = 50
MEASURE_EVERY_S = 5.0
CLASSIFIERS = ("toxicity", "injection", "harm")
Status = Literal["open", "upheld", "overturned"]


class Decision(BaseModel):
    """What a reviewer decides. `expected` is the status that the reviewer saw: another's word isn't lost."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["upheld", "overturned", "open"]
    expected: Status = "open"
    note: str = Field(default="", max_length=2_000, pattern=r"^[^\x00]*$")


class ReviewItem(BaseModel):
    """One withheld text. `text` and `prompt` are there where the policy keeps texts."""

    id: str
    at: float
    policy: str
    policy_digest: str
    checkpoint: str
    completion_id: str
    request_id: str
    stage: str
    action: str
    findings: list[dict[str, Any]]
    prompt: list[dict[str, str]] | None
    text: str | None
    status: str
    decided_by: str | None
    decided_at: float | None
    note: str | None


class ReviewList(BaseModel):
    """Items, oldest first where they are open, else the latest decisions first; and how many are open."""

    items: list[ReviewItem]
    open: int


class Reviews:
    """Reads the queue and takes decisions."""

    def __init__(self, database: Database, metrics: Metrics, audit: AuditLog) -> None:
        self._database = database
        self._metrics = metrics
        self._audit = audit
        self._measured = -MEASURE_EVERY_S

    async def list(self, status: Status, policy: str | None, stage: str | None) -> ReviewList:
        """A page of them."""
        from sqlalchemy import func, select

        from service.store.reviews import reviews

        query = select(reviews).where(reviews.c.status == status).limit(PAGE)
        query = query.order_by(reviews.c.at if status == "open" else reviews.c.decided_at.desc())
        if policy is not None:
            query = query.where(reviews.c.policy == policy)
        if stage is not None:
            query = query.where(reviews.c.stage == stage)
        waiting = select(func.count()).select_from(reviews).where(reviews.c.status == "open")
        try:
            async with self._database.read() as connection:
                rows = (await connection.execute(query)).mappings().all()
                count: int = (await connection.execute(waiting)).scalar_one()
        except StoreError as error:
            raise _unavailable(error) from error
        self._metrics.review_queue.set(count)
        # Fifty conversations may be megabytes.
        return await asyncio.to_thread(
            lambda: ReviewList(items=[ReviewItem(**row) for row in rows], open=count)
        )

    async def decide(self, name: str, decision: Decision, caller: Caller | None) -> ReviewItem:
        """Uphold or overturn. Raises `NotFound`, and `Conflict` where somebody else has decided meanwhile."""
        from sqlalchemy import select, update

        from service.store.reviews import reviews

        decided = decision.decision != "open"
        change = (
            update(reviews)
            .where(reviews.c.id == name, reviews.c.status == decision.expected)
            .values(
                status=decision.decision,
                decided_by=actor_of(caller) if decided else None,
                decided_at=time.time() if decided else None,
                note=decision.note or None,
            )
        )
        try:
            async with self._database.change() as connection:
                changed = (await connection.execute(change)).rowcount
                row = (
                    (await connection.execute(select(reviews).where(reviews.c.id == name))).mappings().first()
                )
        except StoreError as error:
            raise _unavailable(error) from error
        if row is None:
            raise NotFound("there is no such item", param="id")
        if not changed:
            raise Conflict(f"it is {row['status']} already, by {row['decided_by'] or 'somebody'}")
        child(self._metrics.reviews, row["policy"], decision.decision).inc()
        details = {"policy": row["policy"], "digest": row["policy_digest"], "request_id": row["request_id"]}
        action = "review.reopened" if not decided else f"review.{decision.decision}"
        self._audit.record(action, actor=actor_of(caller), subject=name, details=details)
        return ReviewItem(**row)

    async def measure(self) -> None:
        """Bring the metric up to date, not more often than every few seconds."""
        now = time.monotonic()
        if now - self._measured < MEASURE_EVERY_S:
            return
        self._measured = now
        from sqlalchemy import func, select

        from service.store.reviews import reviews

        waiting = select(func.count()).select_from(reviews).where(reviews.c.status == "open")
        async with self._database.read() as connection:
            self._metrics.review_queue.set((await connection.execute(waiting)).scalar_one())


def _unavailable(error: StoreError) -> Unavailable:
    return Unavailable(f"reviews can't be read or written at present: {error}", code="store_failed")


def labels_of(findings: Sequence[dict[str, Any]], overturned: bool) -> dict[str, float]:
    """What a decision says of the labels that a classifier found: 0 where it was wrong, else 1."""
    names = {str(f["entity_type"]).lower() for f in findings if f["kind"] in CLASSIFIERS}
    return dict.fromkeys(sorted(names), 0.0 if overturned else 1.0)
