"""Completions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "completions",
        sa.Column("completion_id", sa.String(200), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("policy", sa.String(64), nullable=False),
        sa.Column("policy_digest", sa.String(64), nullable=False),
        sa.Column("checkpoint", sa.String(200), nullable=False),
        sa.Column("experiment", sa.String(64)),
        sa.Column("arm", sa.String(64)),
        sa.Column("epoch", sa.Integer),
        sa.Column("unit", sa.String(64)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("error", sa.String(64)),
        sa.Column("stream", sa.Integer, nullable=False),
        sa.Column("findings", sa.JSON, nullable=False),
        sa.Column("reward", sa.Double),
        sa.Column("revise_rounds", sa.Integer),
        sa.Column("duration_s", sa.Double, nullable=False),
        sa.Column("first_token_s", sa.Double),
        sa.Column("tokens_in", sa.Integer, nullable=False),
        sa.Column("tokens_out", sa.Integer, nullable=False),
        sa.Column("characters", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("completion_id", name="pk_completions"),
    )
    op.create_index("ix_completions_experiment_epoch_unit", "completions", ["experiment", "epoch", "unit"])
    op.create_index("ix_completions_at", "completions", ["at"])


def downgrade() -> None:
    op.drop_table("completions")
