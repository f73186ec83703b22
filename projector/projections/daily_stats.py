"""`daily_stats`: what happened in a project on a day (UTC). An example to write others by.

Everything is a sum over jobs: what a job has come to by now is told whole, and the day's row takes
up by how much that is more than it was.
"""

from datetime import UTC, timedelta

from sqlalchemy import BigInteger, Column, Date, Integer, Numeric, Table, Text

from projector.projection import Change, Merge, Projection
from projector.projections.money import usd
from projector.tables import metadata
from schemas import Job, Status

daily_stats = Table(
    "daily_stats",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("queued", Integer, nullable=False),
    # Jobs that a worker took for the first time, and how long they had waited by then.
    Column("started", Integer, nullable=False),
    Column("queue_wait_ms", BigInteger, nullable=False),
    Column("takeovers", Integer, nullable=False),
    Column("repairs", Integer, nullable=False),
    Column("ready", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("cancelled", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_usd", Numeric(20, 9), nullable=False),
    # Of jobs that ended, from their first start on.
    Column("wall_ms", BigInteger, nullable=False, server_default="0"),
)

_SUMS = tuple(column.name for column in daily_stats.columns if not column.primary_key)


def _sum(job: Job) -> Change:
    key = (job.tenant, job.project, job.updated_at.astimezone(UTC).date())
    waited = job.started_at - job.queued_at if job.started_at else timedelta()
    return key, {
        "queued": 1,
        "started": int(job.started_at is not None),
        "queue_wait_ms": round(waited.total_seconds() * 1000),
        "takeovers": max(job.attempt - 1, 0),
        "repairs": len(job.failures),
        "ready": int(job.status is Status.READY),
        "failed": int(job.status is Status.FAILED),
        "cancelled": int(job.status is Status.CANCELLED),
        "input_tokens": job.input_tokens,
        "output_tokens": job.output_tokens,
        "cost_usd": usd(job.cost_usd),
        "wall_ms": job.wall_ms,
    }


DAILY_STATS = Projection(daily_stats, of_sum=_sum, merge=dict.fromkeys(_SUMS, Merge.ADD), version=3)
