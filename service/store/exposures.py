"""Units of experiments, a row for each in each epoch: on which arm it was and, once settled, what came of it.

`settle` and `first request wins` make a unit count once, with values that don't change any more: what
sequential analysis rests on.
"""

from __future__ import annotations

from sqlalchemy import Column, Double, Index, Integer, String, Table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.metadata import METADATA

exposures = Table(
    "exposures",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("experiment", String(64), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("arm", String(64), nullable=False),
    Column("unit", String(64), nullable=False),
    Column("unit_kind", String(8), nullable=False),
    Column("at", Double, nullable=False),
    Column("chosen", Integer, nullable=False),  # by a tester: no part of the analysis
    Column("shadow", Integer, nullable=False),
    Column("stream", Integer, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("settled", Double),  # when; null before
    Column("requests", Integer),
    Column("blocked", Integer),
    Column("modified", Integer),
    Column("failed", Integer),
    Column("reward_sum", Double),
    Column("reward_n", Integer),
    Column("feedback_sum", Double),
    Column("feedback_n", Integer),
    Column("revise_rounds", Integer),
    Column("tokens_out", Integer),
    Column("characters", Integer),
    Column("duration_s", Double),
    Column("first_token_s", Double),
    Index(None, "experiment", "epoch", "settled", "at"),
)

BATCH = 2_000

OF_UNIT = """
 WHERE c.experiment = exposures.experiment AND c.epoch = exposures.epoch
   AND c.unit = exposures.unit AND c.arm = exposures.arm"""
OWN = f"FROM completions c {OF_UNIT}"
SCORED = f"FROM completions c LEFT JOIN rewards r ON r.completion_id = c.completion_id {OF_UNIT}"
REWARD = "CASE WHEN :scored = 1 THEN r.reward ELSE c.reward END"

SETTLE = f"""
UPDATE exposures SET
 settled = :now,
 (requests, blocked, modified, failed, reward_sum, reward_n, revise_rounds, tokens_out, characters) =
 (SELECT count(*),
         coalesce(sum(CASE WHEN c.state = 'blocked' THEN 1 ELSE 0 END), 0),
         coalesce(sum(CASE WHEN c.status = 'modified' THEN 1 ELSE 0 END), 0),
         coalesce(sum(CASE WHEN c.state = 'failed' THEN 1 ELSE 0 END), 0),
         coalesce(sum({REWARD}), 0), count({REWARD}), coalesce(sum(c.revise_rounds), 0),
         coalesce(sum(c.tokens_out), 0), coalesce(sum(c.characters), 0)
  {SCORED}),
 duration_s = (SELECT c.duration_s {OWN} AND c.state = 'finished' ORDER BY c.at LIMIT 1),
 first_token_s = (SELECT c.first_token_s {OWN} AND c.first_token_s IS NOT NULL ORDER BY c.at LIMIT 1),
 (feedback_sum, feedback_n) =
 (SELECT coalesce(sum(CASE WHEN CAST(f.value AS TEXT) = '"up"' THEN 1.0 ELSE 0.0 END), 0), count(f.value)
  FROM completions c JOIN feedback f ON f.completion_id = c.completion_id AND f.kind = 'thumb'
  {OF_UNIT})
WHERE id IN (
 SELECT id FROM exposures
  WHERE experiment = :experiment AND epoch = :epoch AND settled IS NULL
    AND (at <= :closed OR (unit_kind = 'request' AND at <= :answered AND EXISTS (SELECT 1 {OWN})))
  ORDER BY at LIMIT {BATCH})
"""  # noqa: S608 - nothing in it comes from outside


async def settle(
    connection: AsyncConnection,
    experiment: str,
    epoch: int,
    *,
    now: float,
    window_s: float,
    grace_s: float,
    scored: bool = False,
) -> int:
    """Fix the values of units that were watched for their window; how many, at most `BATCH`.

    Units that are one request each count when that has ended. `grace_s` is the time that rows may take from
    another gateway to the store. `scored`: rewards are the scorer's, not those of reranking.
    """
    values = {
        "experiment": experiment,
        "epoch": epoch,
        "now": now,
        "closed": now - window_s - grace_s,
        "answered": now - grace_s,
        "scored": int(scored),
    }
    result = await connection.execute(text(SETTLE), values)
    return result.rowcount
