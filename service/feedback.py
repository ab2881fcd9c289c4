"""Feedback on replies: who may say what of which, and what of it is kept."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, Strict, StringConstraints
from structlog.typing import FilteringBoundLogger

from service.auth import Caller
from service.catalog import Catalog, Served
from service.http import Call
from service.openai.errors import BadRequest, Conflict, NotFound, Unavailable
from service.openai.types import Number, Str
from service.records import Records
from service.store.database import Database, RowRefused, StoreError
from service.store.writer import Row, Writer
from service.telemetry.metrics import Metrics, child

FLUSHED_S = 0.4  # another gateway's completion is in the store by then
CompletionId = Annotated[str, Strict(), StringConstraints(min_length=1, max_length=200)]
Label = Annotated[str, Strict(), StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
TEXTS = ("comment", "correction")


class FeedbackRequest(BaseModel):
    """`POST /v1/feedback`: what somebody says of a reply. At least one of the fields that say something.

    `preferred_over` names another completion for the same prompt that this one is better than, `strength` by
    how much. `rater` is whoever judged, where the caller speaks for several; it is kept as a pseudonym.
    """

    model_config = ConfigDict(extra="forbid")

    completion_id: CompletionId
    thumb: Literal["up", "down"] | None = None
    score: Annotated[Number, Field(ge=-1e6, le=1e6)] | None = None
    labels: Annotated[list[Label], Field(min_length=1, max_length=16)] | None = None
    comment: Annotated[Str, Field(min_length=1, max_length=4_000)] | None = None
    correction: Annotated[Str, Field(min_length=1, max_length=32_000)] | None = None
    preferred_over: CompletionId | None = None
    strength: Annotated[Number, Field(ge=0, le=10)] | None = None
    objective: Label = "overall"
    rater: Annotated[Str, Field(min_length=1, max_length=200)] | None = None

    def said(self) -> dict[str, Any]:
        """What it says, by kind."""
        kinds = ("thumb", "score", "labels", *TEXTS)
        found = {kind: value for kind in kinds if (value := getattr(self, kind)) is not None}
        if self.preferred_over is not None:
            found["preference"] = self.strength if self.strength is not None else 1.0
        return found


class FeedbackReceipt(BaseModel):
    """What was recorded, by kind, and what was not because the policy keeps no text."""

    object: Literal["feedback"] = "feedback"
    completion_id: str
    recorded: list[str]
    not_stored: list[str]


class Feedback:
    """Takes feedback; answers once it is committed."""

    def __init__(
        self,
        catalog: Catalog,
        records: Records,
        database: Database,
        writer: Writer,
        metrics: Metrics,
        log: FilteringBoundLogger,
        secret: bytes,
    ) -> None:
        self._catalog = catalog
        self._records = records
        self._database = database
        self._writer = writer
        self._metrics = metrics
        self._log = log
        self._secret = secret

    async def give(self, call: Call, request: FeedbackRequest, payload: dict[str, Any]) -> Mapping[str, Any]:
        """The endpoint's handler. Raises `NotFound`, `BadRequest`, `Conflict`, `Unavailable`."""
        said = request.said()
        if not said:
            fields = "'thumb', 'score', 'labels', 'comment', 'correction' or 'preferred_over'"
            raise BadRequest(f"say something: {fields}")
        if request.strength is not None and request.preferred_over is None:
            raise BadRequest("'strength' belongs to 'preferred_over'", param="strength")
        if request.preferred_over == request.completion_id:
            raise BadRequest("a reply can't be preferred to itself", param="preferred_over")
        try:
            return await self._give(call, request, payload, said)
        except StoreError as error:
            self._log.error("feedback_not_stored", error=str(error))
            message = "feedback can't be stored at present; send it again in a moment"
            raise Unavailable(message, code="store_failed") from error

    async def _give(
        self, call: Call, request: FeedbackRequest, payload: dict[str, Any], said: dict[str, Any]
    ) -> dict[str, Any]:
        policy, digest = await self._known(request.completion_id, "completion_id")
        if request.preferred_over is not None:
            await self._known(request.preferred_over, "preferred_over")
        call.policy = policy
        key_row = await self._key_row(call, payload)
        dropped = await self._redact(policy, digest, said)
        rater = pseudonym(self._secret, call.caller, request.rater)
        about = {"completion_id": request.completion_id, "rater": rater, "policy": policy}
        rows: list[Row] = [
            {
                **about,
                "kind": kind,
                "other": request.preferred_over if kind == "preference" else "",
                "value": value,
                "objective": request.objective,
                "at": time.time(),
            }
            for kind, value in said.items()
        ]
        writes = [self._writer.write("feedback", row) for row in rows]
        if key_row is not None:
            writes.append(self._writer.write("feedback_keys", key_row))
        await asyncio.gather(*writes)
        for kind in said:
            child(self._metrics.feedback, policy, kind).inc()
        receipt = FeedbackReceipt(
            completion_id=request.completion_id, recorded=list(said), not_stored=dropped
        )
        return receipt.model_dump()

    async def _known(self, completion_id: str, param: str) -> tuple[str, str]:
        """Name and digest of the completion's policy. Raises `NotFound`."""
        for wait in (0.0, FLUSHED_S):
            await asyncio.sleep(wait)
            policy = self._records.policy_of(completion_id) or await self._stored_policy(completion_id)
            if policy is not None:
                return policy
        raise NotFound(
            f"no reply {completion_id[:100]!r} is known here: it was never given, is too old, or its policy "
            "takes no feedback",
            param=param,
            code="completion_not_found",
        )

    async def _stored_policy(self, completion_id: str) -> tuple[str, str] | None:
        from sqlalchemy import select

        from service.store.completions import completions

        about = select(completions.c.policy, completions.c.policy_digest)
        query = about.where(completions.c.completion_id == completion_id)
        try:
            async with self._database.read() as connection:
                found = (await connection.execute(query)).one_or_none()
        except RowRefused:  # such as one with a zero byte: nothing is called that
            return None
        return None if found is None else (found.policy, found.policy_digest)

    async def _key_row(self, call: Call, payload: dict[str, Any]) -> Row | None:
        """The row that remembers an `Idempotency-Key`. Raises `Conflict` where its body was another."""
        given = call.received.get(b"idempotency-key")
        if given is None:
            return None
        if not 1 <= len(given) <= 255:
            raise BadRequest("an Idempotency-Key has 1 to 255 characters")
        caller = call.caller.sha256.encode() if call.caller else b""
        key = hashlib.sha256(caller + b" " + given).hexdigest()
        body = hashlib.sha256(orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)).hexdigest()
        from sqlalchemy import select

        from service.store.feedback import feedback_keys

        query = select(feedback_keys.c.body).where(feedback_keys.c.key == key)
        async with self._database.read() as connection:
            known = (await connection.execute(query)).scalar_one_or_none()
        if known is not None and known != body:
            raise Conflict("this Idempotency-Key came with another body", code="idempotency_key_reused")
        return {"key": key, "body": body, "at": time.time()}

    async def _redact(self, policy: str, digest: str, said: dict[str, Any]) -> list[str]:
        """Take personal data out of the texts, or the texts out; what was left out."""
        texts = [kind for kind in TEXTS if kind in said]
        if not texts:
            return []
        served = self._keeping(policy, digest)
        if served is None:
            for kind in texts:
                del said[kind]
            return texts
        kept = await self._records.redacted(served, [said[kind] for kind in texts])
        if kept is None:
            raise Unavailable("the text can't be examined at present", code="guard_failed")
        for kind, (text, _) in zip(texts, kept, strict=True):
            said[kind] = text
        return []

    def _keeping(self, policy: str, digest: str) -> Served | None:
        """The policy that answered, a tenant's variant maybe, if it keeps texts.

        Where it has changed since, everything that has its name by now must keep them.
        """
        every = (*self._catalog.all(), *self._catalog.variants())
        named = [served for served in every if served.name == policy]
        same = [served for served in named if served.policy.digest == digest] or named
        keeping = [one for one in same if one.spec.feedback is not None and one.spec.feedback.store == "text"]
        return keeping[0] if keeping and keeping == same else None


def pseudonym(secret: bytes, caller: Caller | None, rater: str | None = None) -> str:
    """How a rater is called in what is kept: the same for the same person, and nobody's name."""
    who = f"{caller.name if caller else ''}\0{rater or ''}"
    return "r-" + hmac.digest(secret, b"rater " + who.encode("utf-8", "replace"), "sha256").hex()[:16]
