"""The read model's tables, and the lock that projectors take.

The read model stands in the default schema, where everybody's `psql` finds it: all of it can be
thrown away and folded again. What cannot stands in the schema `headrace`.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

from eventstore.tables import SCHEMA
from schemas import Status

metadata = MetaData()
lock_metadata = MetaData(schema=SCHEMA)

_STATUSES = ", ".join(f"'{status}'" for status in Status)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("goal", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("round", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("base_build", Integer),
    Column("build_number", Integer),
    Column("manifest", Text),
    Column("failed_phase", Text),
    Column("failure_kind", Text),
    Column("error_message", Text),
    Column("debug_id", Text),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_usd", Double, nullable=False),
    Column("queued_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("position", Text, nullable=False),
    # Where the running app is: a revision of their own.
    Column("sandbox_id", Text),
    Column("preview_url", Text),
    Column("build_version", Text),
    Column("workspace_path", Text),
    UniqueConstraint("tenant", "project_id", "build_number", name="jobs_build_number"),
    CheckConstraint(f"status in ({_STATUSES})", name="jobs_status"),
    Index("jobs_tenant_id", "tenant", "id"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
)

fold_lock = Table(
    "fold_lock",
    lock_metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
)
