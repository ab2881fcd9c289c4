"""Pairs of replies to one prompt, and which of the two people preferred."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Double, Index, Integer, String, Table, Text

from service.store.metadata import METADATA

# `id` is a digest of prompt and replies: a pair is there once, however often it comes. `gap` is the first
# reply's reward less the second's, where both are known. `first_about` and `second_about` say what answered.
pairs = Table(
    "pairs",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("source", String(16), nullable=False),
    Column("objective", String(64), nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("first", Text, nullable=False),
    Column("second", Text, nullable=False),
    Column("first_about", JSON, nullable=False),
    Column("second_about", JSON, nullable=False),
    Column("gap", Double),
    Column("at", Double, nullable=False),
    Index(None, "at"),
)

# `choice`: first, second, tie or skip. `left` is the reply that stood on the left.
judgements = Table(
    "judgements",
    METADATA,
    Column("pair_id", String(40), primary_key=True),
    Column("rater", String(40), primary_key=True),
    Column("choice", String(8), nullable=False),
    Column("strength", Integer, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("left", String(8), nullable=False),
    Column("seconds", Double),
    Column("at", Double, nullable=False),
    info={"again": "replace"},
)
