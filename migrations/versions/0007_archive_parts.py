"""The archive in parts by month; a job's events in the order of the log, whatever they claim."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SCHEMA = "headrace"
COLUMNS = "partition, epoch, seq, id, type, tenant, project, job, version, time, cause, trace, data"
VIEW = (
    f"CREATE VIEW {SCHEMA}.events_json AS SELECT partition, epoch, seq, id, type, tenant, "
    "project, job, version, time, cause, trace, convert_from(data, 'UTF8')::json AS data "
    f"FROM {SCHEMA}.events"
)


def columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("id", postgresql.UUID(as_uuid=False), nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("job", sa.Text(collation="C"), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("trace", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    ]


def first_id(year: int, month: int) -> str:
    digits = f"{int(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def set_aside() -> None:
    op.execute(f"DROP VIEW {SCHEMA}.events_json")
    op.execute(f"ALTER TABLE {SCHEMA}.events RENAME TO old_events")
    op.execute(f"ALTER TABLE {SCHEMA}.old_events DROP CONSTRAINT events_pkey")


def fill() -> None:
    op.execute(f"INSERT INTO {SCHEMA}.events ({COLUMNS}) SELECT {COLUMNS} FROM {SCHEMA}.old_events")
    op.execute(f"DROP TABLE {SCHEMA}.old_events CASCADE")
    op.execute(VIEW)


def index_ready() -> None:
    op.create_index(
        "events_ready",
        "events",
        ["tenant", "project"],
        schema=SCHEMA,
        postgresql_where=sa.text("type = 'JobReady'"),
    )


def upgrade() -> None:
    set_aside()
    op.drop_index("events_job_version", table_name="old_events", schema=SCHEMA)
    op.drop_index("events_ready", table_name="old_events", schema=SCHEMA)
    op.create_table(
        "events",
        *columns(),
        sa.PrimaryKeyConstraint("partition", "epoch", "seq", "job", name="events_pkey"),
        schema=SCHEMA,
        postgresql_partition_by="RANGE (job)",
    )
    op.create_index("events_job", "events", ["job", "epoch", "seq"], schema=SCHEMA)
    index_ready()
    op.execute(f"CREATE TABLE {SCHEMA}.events_other PARTITION OF {SCHEMA}.events DEFAULT")
    # What is there begins in the year that these ids came in; from this month on the projector
    # makes the parts.
    now = datetime.now(UTC)
    this_month = first_id(now.year, now.month)
    op.execute(
        f"CREATE TABLE {SCHEMA}.events_before PARTITION OF {SCHEMA}.events "
        f"FOR VALUES FROM ('{first_id(2024, 1)}') TO ('{this_month}')"
    )
    year, month = now.year, now.month
    for _ in range(4):
        following = (year + month // 12, month % 12 + 1)
        op.execute(
            f"CREATE TABLE {SCHEMA}.events_{year}_{month:02} PARTITION OF {SCHEMA}.events "
            f"FOR VALUES FROM ('{first_id(year, month)}') TO ('{first_id(*following)}')"
        )
        year, month = following
    fill()


def downgrade() -> None:
    set_aside()
    op.drop_index("events_job", table_name="old_events", schema=SCHEMA)
    op.drop_index("events_ready", table_name="old_events", schema=SCHEMA)
    op.create_table(
        "events",
        *columns()[:7],
        sa.Column("job", sa.Text, nullable=False),
        *columns()[8:],
        sa.PrimaryKeyConstraint("partition", "epoch", "seq", name="events_pkey"),
        schema=SCHEMA,
    )
    op.create_index("events_job_version", "events", ["job", "version"], unique=True, schema=SCHEMA)
    index_ready()
    fill()
