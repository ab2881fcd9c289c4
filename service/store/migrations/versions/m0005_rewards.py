"""Rewards of experiments' scorers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "rewards",
        sa.Column("completion_id", sa.String(200), nullable=False),
        sa.Column("experiment", sa.String(64), nullable=False),
        sa.Column("reward", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("completion_id", name="pk_rewards"),
    )
    op.create_index("ix_rewards_at", "rewards", ["at"])


def downgrade() -> None:
    op.drop_table("rewards")
