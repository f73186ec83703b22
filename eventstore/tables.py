"""The log's own tables, in the schema `headrace`, which no rebuild of a read model ever touches."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import UUID

SCHEMA = "headrace"

metadata = MetaData(schema=SCHEMA)

events_table = Table(
    "events",
    metadata,
    Column("partition", Integer, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("id", UUID(as_uuid=False), nullable=False),
    Column("type", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("project", Text, nullable=False),
    # Compared byte by byte: ids grow with time, so that a part holds the jobs of a month, whole.
    Column("job", Text(collation="C"), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("time", DateTime(timezone=True), nullable=False),
    Column("cause", Text, nullable=False),
    Column("trace", Text, nullable=False),
    # Exactly the bytes that were appended: jsonb would refuse some and rewrite others.
    Column("data", LargeBinary, nullable=False),
    Index("events_job", "job", "epoch", "seq"),
    postgresql_partition_by="RANGE (job)",
)

# Of each project the number of its newest archived build. A part of the archive may be detached,
# and a read model be made anew: what a project counts on from outlives both.
last_builds_table = Table(
    "last_builds",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("project", Text, primary_key=True),
    Column("number", Numeric, nullable=False),
)

log_partitions_table = Table(
    "log_partitions",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("lineage", UUID(as_uuid=False), nullable=False),
    Column("state", Text, nullable=False),
    CheckConstraint("state in ('creating', 'open')", name="log_partitions_state"),
)

log_epochs_table = Table(
    "log_epochs",
    metadata,
    Column(
        "partition",
        ForeignKey(log_partitions_table.c.partition, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    # The first seq of the epoch: whatever the epoch before has from here on was lost or forked.
    Column("start_seq", BigInteger, nullable=False),
    # The server process for which the epoch was begun.
    Column("run", Text, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
