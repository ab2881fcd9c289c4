"""Feedback, comparisons and reviews."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    _feedback()
    _comparisons()
    op.create_table(
        "reviews",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("policy", sa.String(64), nullable=False),
        sa.Column("policy_digest", sa.String(64), nullable=False),
        sa.Column("checkpoint", sa.String(200), nullable=False),
        sa.Column("completion_id", sa.String(200), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("stage", sa.String(8), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("findings", sa.JSON, nullable=False),
        sa.Column("prompt", sa.JSON),
        sa.Column("text", sa.Text),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("decided_by", sa.String(80)),
        sa.Column("decided_at", sa.Double),
        sa.Column("note", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_reviews"),
    )
    op.create_index("ix_reviews_status_at", "reviews", ["status", "at"])


def _feedback() -> None:
    op.create_table(
        "feedback",
        sa.Column("completion_id", sa.String(200), nullable=False),
        sa.Column("rater", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("other", sa.String(200), nullable=False),
        sa.Column("value", sa.JSON, nullable=False),
        sa.Column("objective", sa.String(64), nullable=False),
        sa.Column("policy", sa.String(64), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("completion_id", "rater", "kind", "other", name="pk_feedback"),
    )
    op.create_index("ix_feedback_at", "feedback", ["at"])
    op.create_table(
        "feedback_keys",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("body", sa.String(64), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_feedback_keys"),
    )
    op.create_index("ix_feedback_keys_at", "feedback_keys", ["at"])
    op.create_table(
        "texts",
        sa.Column("completion_id", sa.String(200), nullable=False),
        sa.Column("policy", sa.String(64), nullable=False),
        sa.Column("prompt_digest", sa.String(64), nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("replies", sa.JSON, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("completion_id", name="pk_texts"),
    )
    op.create_index("ix_texts_prompt_digest", "texts", ["prompt_digest"])
    op.create_index("ix_texts_at", "texts", ["at"])


def _comparisons() -> None:
    op.create_table(
        "pairs",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("objective", sa.String(64), nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("first", sa.Text, nullable=False),
        sa.Column("second", sa.Text, nullable=False),
        sa.Column("first_about", sa.JSON, nullable=False),
        sa.Column("second_about", sa.JSON, nullable=False),
        sa.Column("gap", sa.Double),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pairs"),
    )
    op.create_index("ix_pairs_at", "pairs", ["at"])
    op.create_table(
        "judgements",
        sa.Column("pair_id", sa.String(40), nullable=False),
        sa.Column("rater", sa.String(40), nullable=False),
        sa.Column("choice", sa.String(8), nullable=False),
        sa.Column("strength", sa.Integer, nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("left", sa.String(8), nullable=False),
        sa.Column("seconds", sa.Double),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("pair_id", "rater", name="pk_judgements"),
    )


def downgrade() -> None:
    for table in ("reviews", "judgements", "pairs", "texts", "feedback_keys", "feedback"):
        op.drop_table(table)
