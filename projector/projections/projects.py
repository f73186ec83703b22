"""`projects`: what each project has come to."""

from sqlalchemy import BigInteger, Column, DateTime, Integer, Numeric, Table, Text

from projector.projection import Change, Merge, Projection
from projector.projections.money import usd
from projector.tables import metadata
from schemas import Job, Status

projects = Table(
    "projects",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("latest_build", Integer),
    Column("jobs", Integer, nullable=False),
    Column("ready", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("cancelled", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_usd", Numeric(20, 9), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    # When one of its jobs was queued or ended last.
    Column("updated_at", DateTime(timezone=True), nullable=False),
)


def _sum(job: Job) -> Change:
    return (job.tenant, job.project), {
        "latest_build": job.build_number,
        "jobs": 1,
        "ready": int(job.status is Status.READY),
        "failed": int(job.status is Status.FAILED),
        "cancelled": int(job.status is Status.CANCELLED),
        "input_tokens": job.input_tokens,
        "output_tokens": job.output_tokens,
        "cost_usd": usd(job.cost_usd),
        "created_at": job.queued_at,
        # It may end by a clock that is behind the one by which it was queued.
        "updated_at": max(job.queued_at, job.finished_at or job.queued_at),
    }


PROJECTS = Projection(
    projects,
    of_sum=_sum,
    merge={
        "latest_build": Merge.MOST,
        "jobs": Merge.ADD,
        "ready": Merge.ADD,
        "failed": Merge.ADD,
        "cancelled": Merge.ADD,
        "input_tokens": Merge.ADD,
        "output_tokens": Merge.ADD,
        "cost_usd": Merge.ADD,
        "created_at": Merge.LEAST,
        "updated_at": Merge.MOST,
    },
    version=2,
)
