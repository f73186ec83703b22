"""`jobs`: every job as it is now."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from projector.projection import Projection, Row
from projector.tables import metadata
from schemas import Job, Position, Preview, Status

_STATUSES = ", ".join(f"'{status}'" for status in Status)
_PREVIEWS = ", ".join(f"'{preview}'" for preview in Preview)

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
    Column("worker", Text),
    Column("round", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("base_build", Integer),
    Column("restore", Boolean, nullable=False, server_default="false"),
    Column("build_number", Integer),
    Column("manifest", Text),
    Column("log", Text),
    Column("failed_phase", Text),
    Column("failure_kind", Text),
    Column("error_message", Text),
    Column("debug_id", Text),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_usd", Double, nullable=False),
    # The part of these that repairs had.
    Column("repair_input_tokens", BigInteger, nullable=False, server_default="0"),
    Column("repair_output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("repair_cost_usd", Double, nullable=False, server_default="0"),
    Column("retries", Integer, nullable=False, server_default="0"),
    # How long each phase took, all rounds together.
    Column("scaffold_ms", BigInteger),
    Column("code_ms", BigInteger),
    Column("deps_ms", BigInteger),
    Column("checks_ms", BigInteger),
    Column("queued_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    # When the sandbox ends by itself, and the preview with it.
    Column("expires_at", DateTime(timezone=True)),
    Column("preview", Text),
    Column("position", Text, nullable=False),
    # Where the running app is.
    Column("sandbox_id", Text),
    Column("preview_url", Text),
    Column("build_version", Text),
    Column("workspace_path", Text),
    UniqueConstraint("tenant", "project_id", "build_number", name="jobs_build_number"),
    CheckConstraint(f"status in ({_STATUSES})", name="jobs_status"),
    CheckConstraint(f"preview in ({_PREVIEWS})", name="jobs_preview"),
    CheckConstraint("version >= 1", name="jobs_version"),
    # Lists are in the order of queueing, newest first; each filter has an index in that order.
    Index("jobs_tenant", "tenant", "queued_at", "id"),
    Index("jobs_project", "tenant", "project_id", "queued_at", "id"),
    Index("jobs_status", "tenant", "status", "queued_at", "id"),
    Index("jobs_tier", "tenant", "tier", "queued_at", "id"),
    # The previews that somebody must look after, those first that end first.
    Index(
        "jobs_previews",
        "expires_at",
        "id",
        postgresql_where=text("preview in ('running', 'waking', 'paused')"),
    ),
    Index("jobs_goal", text("to_tsvector('simple', goal)"), postgresql_using="gin"),
)


def job_row(job: Job, position: Position) -> Row:
    """The job's row, as of the event at `position`: what it is called as in its state, and these.

    What of its state is no column is in it too: to pick would take five times as long.
    """
    row = job.__dict__.copy()
    row["id"] = job.job
    row["project_id"] = job.project
    row["status"] = str(job.status)
    row["failed_phase"] = str(job.failed_phase) if job.failed_phase else None
    row["expires_at"] = job.sandbox_ends_at
    row["preview"] = str(job.preview) if job.preview else None
    row["position"] = str(position)
    return row


JOBS = Projection(jobs, of_job=job_row, job="id")
