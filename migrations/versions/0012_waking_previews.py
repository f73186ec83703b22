"""Previews that are asked for again, and an index of those that somebody must look after."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _allow("'running', 'waking', 'paused', 'expired'")
    op.create_index(
        "jobs_previews",
        "jobs",
        ["expires_at", "id"],
        postgresql_where=sa.text("preview in ('running', 'waking', 'paused')"),
    )


def downgrade() -> None:
    op.drop_index("jobs_previews", "jobs")
    op.execute("UPDATE jobs SET preview = 'expired' WHERE preview = 'waking'")
    _allow("'running', 'paused', 'expired'")


def _allow(previews: str) -> None:
    op.drop_constraint("jobs_preview", "jobs")
    op.create_check_constraint("jobs_preview", "jobs", f"preview in ({previews})")
