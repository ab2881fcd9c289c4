"""What experiments' scorers made of replies, a row each: the mean over a reply's choices."""

from __future__ import annotations

from sqlalchemy import Column, Double, Index, String, Table

from service.store.metadata import METADATA

rewards = Table(
    "rewards",
    METADATA,
    Column("completion_id", String(200), primary_key=True),
    Column("experiment", String(64), nullable=False),
    Column("reward", Double, nullable=False),
    Column("at", Double, nullable=False),
    Index(None, "at"),
)
