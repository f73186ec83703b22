"""How long the jobs of a day took."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "daily_stats", sa.Column("wall_ms", sa.BigInteger, nullable=False, server_default="0")
    )
    # A table with rows is filled anew from the archive, as its projection has a new version.
    op.execute(
        "UPDATE headrace.projections SET version = 2 "
        "WHERE name = 'daily_stats' AND NOT EXISTS (SELECT FROM daily_stats)"
    )


def downgrade() -> None:
    op.execute("UPDATE headrace.projections SET version = 1 WHERE name = 'daily_stats'")
    op.drop_column("daily_stats", "wall_ms")
