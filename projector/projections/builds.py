"""`builds`: what became READY, numbered within its project."""

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Integer,
    Table,
    Text,
    UniqueConstraint,
)

from projector.projection import Projection, Row
from projector.projections.jobs import jobs
from projector.tables import metadata
from schemas import Job, Position

builds = Table(
    "builds",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("job_id", Text, ForeignKey(jobs.c.id), nullable=False),
    Column("version", Text, nullable=False),
    Column("goal", Text, nullable=False),
    Column("manifest", Text),
    # The build whose files it began with.
    Column("parent", Integer),
    Column("preview", Text),
    Column("preview_url", Text),
    Column("sandbox_id", Text),
    Column("workspace_path", Text),
    Column("cost_usd", Double, nullable=False),
    Column("ready_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    UniqueConstraint("job_id", name="builds_job"),
    CheckConstraint("number >= 1", name="builds_number"),
)


def build_row(job: Job, _: Position) -> Row | None:
    """The build that the job became, if it did."""
    if job.build_number is None:
        return None
    return {
        "tenant": job.tenant,
        "project_id": job.project,
        "number": job.build_number,
        "job_id": job.job,
        "version": job.build_version,
        "goal": job.goal,
        "manifest": job.manifest,
        "parent": job.base_build,
        "preview": str(job.preview) if job.preview else None,
        "preview_url": job.preview_url,
        "sandbox_id": job.sandbox_id,
        "workspace_path": job.workspace_path,
        "cost_usd": job.cost_usd,
        "ready_at": job.finished_at,
        "expires_at": job.sandbox_ends_at,
    }


BUILDS = Projection(builds, of_job=build_row, job="job_id")
