"""What a rater says of a reply is said by objective: one doesn't replace another."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

BEFORE = ["completion_id", "rater", "kind", "other"]


def upgrade() -> None:
    _key([*BEFORE, "objective"])


def downgrade() -> None:
    _key(BEFORE)


def _key(columns: list[str]) -> None:
    with op.batch_alter_table("feedback") as batch:
        batch.drop_constraint("pk_feedback", type_="primary")
        batch.create_primary_key("pk_feedback", columns)
