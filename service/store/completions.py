"""Finished generations, a row each: what feedback, reviews and experiments refer to. No texts."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Column, Double, Index, Integer, String, Table

from service.store.metadata import METADATA

if TYPE_CHECKING:
    from service.outcomes import Outcome

completions = Table(
    "completions",
    METADATA,
    Column("completion_id", String(200), primary_key=True),
    Column("request_id", String(128), nullable=False),
    Column("at", Double, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("policy", String(64), nullable=False),
    Column("policy_digest", String(64), nullable=False),
    Column("checkpoint", String(200), nullable=False),
    Column("experiment", String(64)),
    Column("arm", String(64)),
    Column("epoch", Integer),
    Column("unit", String(64)),
    Column("state", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("action", String(16), nullable=False),
    Column("error", String(64)),
    Column("stream", Integer, nullable=False),
    Column("findings", JSON, nullable=False),
    Column("reward", Double),
    Column("revise_rounds", Integer),
    Column("duration_s", Double, nullable=False),
    Column("first_token_s", Double),
    Column("tokens_in", Integer, nullable=False),
    Column("tokens_out", Integer, nullable=False),
    Column("characters", Integer, nullable=False),
    Index(None, "experiment", "epoch", "unit"),
    Index(None, "at"),
)


def row_of(outcome: Outcome) -> dict[str, Any]:
    """An outcome as a row of the table."""
    row = asdict(outcome)
    # Who saw no id can't refer to it, but the request counts.
    row["completion_id"] = outcome.completion_id or f"none-{secrets.token_hex(16)}"
    row["findings"] = [[*what, count] for what, count in outcome.findings.items()]
    row["stream"] = int(outcome.stream)
    return row
