"""Projects and days sum up what the states of jobs say, no more what single events do."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _mark(projects=2, daily_stats=3)


def downgrade() -> None:
    _mark(projects=1, daily_stats=2)


def _mark(**versions: int) -> None:
    """Whoever folds fills these tables anew from the archive, unless they are empty.

    Version 0 is nobody's: neither this program nor an older one takes such rows for its own.
    """
    op.execute(f"LOCK TABLE {', '.join(versions)} IN SHARE MODE")
    for table, version in versions.items():
        op.execute(
            f"UPDATE headrace.projections SET version = CASE WHEN EXISTS (SELECT FROM {table}) "
            f"THEN 0 ELSE {version} END WHERE name = '{table}'"
        )
