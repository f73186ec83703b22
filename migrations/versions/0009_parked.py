"""Jobs that stand aside, and which projections have been built from the archive."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

SCHEMA = "headrace"


def upgrade() -> None:
    op.create_table(
        "parked",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="parked"),
        sa.Column(
            "parked_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
        ),
        sa.CheckConstraint("state in ('parked', 'discarded')", name="parked_state"),
        schema=SCHEMA,
    )
    op.create_index("parked_partition", "parked", ["partition"], schema=SCHEMA)
    op.create_table(
        "projections",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column(
            "built_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
        ),
        schema=SCHEMA,
    )
    # Where nothing is archived there is nothing to be folded again.
    op.execute(
        f"""
        INSERT INTO {SCHEMA}.projections (name, version)
        SELECT name, 1
        FROM unnest(ARRAY['jobs', 'phases', 'builds', 'projects', 'daily_stats']) AS name
        WHERE NOT EXISTS (SELECT 1 FROM {SCHEMA}.events)
        """
    )


def downgrade() -> None:
    op.drop_table("projections", schema=SCHEMA)
    op.drop_table("parked", schema=SCHEMA)
