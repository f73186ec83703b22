"""Projects and days sum up what the states of jobs say, no more what single events do."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Tables with rows are filled anew from the archive, as their projections have a new version.
    op.execute(
        "UPDATE headrace.projections SET version = 2 "
        "WHERE name = 'projects' AND NOT EXISTS (SELECT FROM projects)"
    )
    op.execute(
        "UPDATE headrace.projections SET version = 3 WHERE name = 'daily_stats' "
        "AND version = 2 AND NOT EXISTS (SELECT FROM daily_stats)"
    )


def downgrade() -> None:
    op.execute("UPDATE headrace.projections SET version = 1 WHERE name = 'projects'")
    op.execute("UPDATE headrace.projections SET version = 2 WHERE name = 'daily_stats'")
