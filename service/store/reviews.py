"""What guards withheld, and what people made of it."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Double, Index, String, Table, Text

from service.store.metadata import METADATA

# `status`: open, upheld or overturned. Findings' offsets are in `text`, None where texts aren't kept.
reviews = Table(
    "reviews",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("at", Double, nullable=False),
    Column("policy", String(64), nullable=False),
    Column("policy_digest", String(64), nullable=False),
    Column("checkpoint", String(200), nullable=False),
    Column("completion_id", String(200), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("stage", String(8), nullable=False),
    Column("action", String(16), nullable=False),
    Column("findings", JSON, nullable=False),
    Column("prompt", JSON),
    Column("text", Text),
    Column("status", String(16), nullable=False),
    Column("decided_by", String(80)),
    Column("decided_at", Double),
    Column("note", Text),
    Index(None, "status", "at"),
)
