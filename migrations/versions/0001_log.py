"""The archive of the log and the register of its partitions, in a schema of their own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "headrace"


def upgrade() -> None:
    op.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    op.create_table(
        "events",
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("epoch", sa.BigInteger, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("id", postgresql.UUID(as_uuid=False), nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("trace", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        schema=SCHEMA,
    )
    op.create_index("events_job_version", "events", ["job", "version"], unique=True, schema=SCHEMA)
    # Payloads stay bytes; this is how people look at them.
    op.execute(
        f"CREATE VIEW {SCHEMA}.events_json AS SELECT partition, epoch, seq, id, type, tenant, "
        "project, job, version, time, cause, trace, convert_from(data, 'UTF8')::json AS data "
        f"FROM {SCHEMA}.events"
    )
    op.create_table(
        "log_partitions",
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("lineage", postgresql.UUID(as_uuid=False), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.CheckConstraint("state in ('creating', 'open')", name="log_partitions_state"),
        schema=SCHEMA,
    )
    op.create_table(
        "fold_lock",
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_table("fold_lock", schema=SCHEMA)
    op.drop_table("log_partitions", schema=SCHEMA)
    op.execute(f"DROP VIEW {SCHEMA}.events_json")
    op.drop_table("events", schema=SCHEMA)
    op.execute(f"DROP SCHEMA {SCHEMA}")
