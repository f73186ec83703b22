"""What can be asked of the read model. Plain functions: a connection in, typed rows out."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from projector.fold import row
from projector.tables import jobs
from schemas import Job, Position, Status

MAX_PAGE = 200


class JobRow(BaseModel):
    """A job as the read model shows it; `position` is the newest event folded into it, None before
    the first."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    tenant: str
    user_id: str
    project_id: str
    goal: str
    tier: str
    status: Status
    attempt: int
    round: int
    version: int
    base_build: int | None
    build_number: int | None
    build_version: str | None
    preview_url: str | None
    sandbox_id: str | None
    workspace_path: str | None
    manifest: str | None
    failed_phase: str | None
    failure_kind: str | None
    error_message: str | None
    debug_id: str | None
    input_tokens: int
    output_tokens: int
    cost_usd: float
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    position: str | None


async def job_by_id(connection: AsyncConnection, tenant: str, job: str) -> JobRow | None:
    """One job of a tenant; None when it is not there, or another's."""
    found = (await connection.execute(_jobs_of(tenant).where(jobs.c.id == job))).mappings()
    columns = found.one_or_none()
    return _job_row(dict(columns)) if columns else None


async def list_jobs(
    connection: AsyncConnection,
    tenant: str,
    *,
    project: str | None = None,
    status: Status | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[JobRow]:
    """A tenant's jobs, newest first, behind job id `before`; at most `limit` (1 to 200).

    Ids grow with time, so a page stays the same while new jobs arrive in front of it.
    """
    query = _jobs_of(tenant).order_by(jobs.c.id.desc()).limit(limit)
    if project is not None:
        query = query.where(jobs.c.project_id == project)
    if status is not None:
        query = query.where(jobs.c.status == status.value)
    if before is not None:
        query = query.where(jobs.c.id < before)
    found = (await connection.execute(query)).mappings()
    return [_job_row(dict(columns)) for columns in found]


def row_of(job: Job) -> JobRow:
    """The row that `job` will have once it is folded, without a position: it has none yet."""
    return _job_row({**row(job, Position(0, 0, 0)), "position": None})


def _jobs_of(tenant: str) -> Select[Any]:
    return select(jobs).where(jobs.c.tenant == tenant)


def _job_row(columns: dict[str, Any]) -> JobRow:
    return JobRow(job_id=columns.pop("id"), **columns)
