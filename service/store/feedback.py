"""What people said of replies, and the texts that they said it of, where policies let those be kept."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Double, Index, String, Table

from service.store.metadata import METADATA

# One row for each thing that one rater said of one reply by one objective; saying it again replaces it.
# `other` is the reply that this one was preferred to, else empty.
feedback = Table(
    "feedback",
    METADATA,
    Column("completion_id", String(200), primary_key=True),
    Column("rater", String(40), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("other", String(200), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("objective", String(64), primary_key=True),
    Column("policy", String(64), nullable=False),
    Column("at", Double, nullable=False),
    Index(None, "at"),
    info={"again": "replace"},
)

# What was sent under an `Idempotency-Key`, as digests.
feedback_keys = Table(
    "feedback_keys",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("body", String(64), nullable=False),
    Column("at", Double, nullable=False),
    Index(None, "at"),
)

# `prompt` is a list of messages, `replies` one text a choice.
texts = Table(
    "texts",
    METADATA,
    Column("completion_id", String(200), primary_key=True),
    Column("policy", String(64), nullable=False),
    Column("prompt_digest", String(64), nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("replies", JSON, nullable=False),
    Column("at", Double, nullable=False),
    Index(None, "prompt_digest"),
    Index(None, "at"),
)
