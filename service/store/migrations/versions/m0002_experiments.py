"""Experiments: states, their history, looks, units and who evaluates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "exposures",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("experiment", sa.String(64), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("unit", sa.String(64), nullable=False),
        sa.Column("unit_kind", sa.String(8), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("chosen", sa.Integer, nullable=False),
        sa.Column("shadow", sa.Integer, nullable=False),
        sa.Column("stream", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("settled", sa.Double),
        sa.Column("requests", sa.Integer),
        sa.Column("blocked", sa.Integer),
        sa.Column("modified", sa.Integer),
        sa.Column("failed", sa.Integer),
        sa.Column("reward_sum", sa.Double),
        sa.Column("reward_n", sa.Integer),
        sa.Column("feedback_sum", sa.Double),
        sa.Column("feedback_n", sa.Integer),
        sa.Column("revise_rounds", sa.Integer),
        sa.Column("tokens_out", sa.Integer),
        sa.Column("characters", sa.Integer),
        sa.Column("duration_s", sa.Double),
        sa.Column("first_token_s", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_exposures"),
    )
    op.create_index(
        "ix_exposures_experiment_epoch_settled_at", "exposures", ["experiment", "epoch", "settled", "at"]
    )
    op.create_table(
        "experiments",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.Column("shares", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("unit_key", sa.String(16), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_experiments"),
    )
    op.create_table(
        "experiment_events",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("experiment", sa.String(64), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("shares", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_experiment_events"),
    )
    op.create_index("ix_experiment_events_experiment_at", "experiment_events", ["experiment", "at"])
    op.create_table(
        "experiment_looks",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("experiment", sa.String(64), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_experiment_looks"),
    )
    op.create_index(
        "ix_experiment_looks_experiment_epoch_at", "experiment_looks", ["experiment", "epoch", "at"]
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )


def downgrade() -> None:
    for name in ("leases", "experiment_looks", "experiment_events", "experiments", "exposures"):
        op.drop_table(name)
