"""Jobs: one, lists by anything, and the timeline of one."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import (
    ColumnElement,
    Select,
    func,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from projector.errors import ProjectorError
from projector.projections.jobs import job_row, jobs
from projector.projections.phases import phases
from projector.tables import parked
from schemas import Job, JobRef, Position, Preview, Status
from schemas.erasing import ERASED
from schemas.job import TERMINAL

MAX_PAGE = 200
_MOST_WORDS = 20
_LONGEST_WORD = 200


class JobRow(BaseModel):
    """A job as the read model shows it; `position` is the newest event folded into it, None before
    the first. `parked`: an event of it could not be folded, what came later is not in here.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    tenant: str
    user_id: str
    project_id: str
    goal: str
    tier: str
    status: Status
    attempt: int
    worker: str | None
    round: int
    version: int
    base_build: int | None
    restore: bool
    build_number: int | None
    build_version: str | None
    preview_url: str | None
    sandbox_id: str | None
    workspace_path: str | None
    manifest: str | None
    log: str | None
    failed_phase: str | None
    failure_kind: str | None
    error_message: str | None
    debug_id: str | None
    input_tokens: int
    output_tokens: int
    cost_usd: float
    repair_input_tokens: int
    repair_output_tokens: int
    repair_cost_usd: float
    retries: int
    scaffold_ms: int | None
    code_ms: int | None
    deps_ms: int | None
    checks_ms: int | None
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    expires_at: datetime | None
    preview: str | None
    position: str | None
    parked: bool = False


class PhaseRow(BaseModel):
    """A time that a job was in a phase. `duration_ms` is the worker's own measure."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    round: int
    phase: str
    outcome: str
    started_at: datetime
    finished_at: datetime | None
    duration_ms: int | None
    input_tokens: int
    output_tokens: int
    cost_usd: float


class UnknownCursor(ProjectorError):
    """A page was asked for behind a job that is not there. Begin again with the first page."""

    def __init__(self, job: str) -> None:
        self.job = job
        super().__init__(f"there is no job {job}; begin again with the first page")


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
    tier: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    goal: str | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[JobRow]:
    """A tenant's jobs, the newest queued first, behind job id `before`; at most `limit` (1 to 200).

    Queued at or after `since` and before `until`; `goal` are beginnings of words that all stand in
    the goal. A page stays what it is while jobs arrive in front of it. Raises `UnknownCursor`.
    """
    order = jobs.c.queued_at, jobs.c.id
    query = _jobs_of(tenant).order_by(*[column.desc() for column in order]).limit(limit)
    for column, wanted in (
        (jobs.c.project_id, project),
        (jobs.c.status, status.value if status else None),
        (jobs.c.tier, tier),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    if since is not None:
        query = query.where(jobs.c.queued_at >= since)
    if until is not None:
        query = query.where(jobs.c.queued_at < until)
    if goal is not None and (words := words_query(goal)):
        # As the index has it: another spelling of the same would not be found in it.
        vector: ColumnElement[Any] = literal_column("to_tsvector('simple', jobs.goal)")
        wanted_words = func.to_tsquery(literal_column("'simple'"), words)
        query = query.where(vector.bool_op("@@")(wanted_words))
    if before is not None:
        query = query.where(tuple_(*order) < tuple_(*await _place(connection, tenant, before)))
    found = (await connection.execute(query)).mappings()
    return [_job_row(dict(columns)) for columns in found]


async def living_previews(connection: AsyncConnection, limit: int) -> list[JobRef]:
    """Builds of all tenants whose preview runs, sleeps or is being woken; first which end first."""
    query = (
        select(jobs.c.tenant, jobs.c.id)
        # As the index has it.
        .where(text("jobs.preview in ('running', 'waking', 'paused')"))
        .where(jobs.c.sandbox_id.is_distinct_from(ERASED))
        .order_by(jobs.c.expires_at, jobs.c.id)
        .limit(limit)
    )
    return [JobRef(row.tenant, row.id) for row in await connection.execute(query)]


async def workspaces_of_ended(
    connection: AsyncConnection, found: Sequence[str]
) -> dict[str, str | None]:
    """Those of the jobs, of any tenant, with which no worker has to do any more.

    And where the files of each lie.
    """
    query = (
        select(jobs.c.id, jobs.c.workspace_path)
        .where(text("jobs.id = any(:found)").bindparams(found=list(found)))
        .where(jobs.c.status.in_(TERMINAL))
        .where(jobs.c.preview.is_distinct_from(Preview.WAKING))
    )
    return {row.id: row.workspace_path for row in await connection.execute(query)}


async def timeline(connection: AsyncConnection, tenant: str, job: str) -> list[PhaseRow]:
    """Every time that a job was in a phase, in order; empty for a job that is not there."""
    query = (
        select(phases)
        .where(phases.c.job_id == job, phases.c.tenant == tenant)
        .order_by(phases.c.started_at, phases.c.attempt, phases.c.round)
    )
    found = (await connection.execute(query)).mappings()
    return [PhaseRow.model_validate(dict(columns)) for columns in found]


def row_of(job: Job) -> JobRow:
    """The row that `job` will have once it is folded, without a position: it has none yet."""
    return _job_row({**job_row(job, Position(0, 0, 0)), "position": None, "parked": False})


def words_query(said: str) -> str:
    """The tsquery for a person's words, each the beginning of a word; empty when there are none.

    Quoted, so that nothing in them is an operator; what is a word is for Postgres' parser to say,
    which read the goals too.
    """
    words = said.replace("\0", " ").encode(errors="ignore").decode().split()[:_MOST_WORDS]
    escaped = [word[:_LONGEST_WORD].replace("\\", "\\\\").replace("'", "''") for word in words]
    return " & ".join(f"'{word}':*" for word in escaped)


async def _place(connection: AsyncConnection, tenant: str, job: str) -> tuple[datetime, str]:
    """Where a job stands in the order of its tenant's."""
    query = select(jobs.c.queued_at, jobs.c.id).where(jobs.c.id == job, jobs.c.tenant == tenant)
    found = (await connection.execute(query)).one_or_none()
    if found is None:
        raise UnknownCursor(job)
    return found.queued_at, found.id


def _jobs_of(tenant: str) -> Select[Any]:
    is_parked = parked.c.job.is_not(None).label("parked")
    together = jobs.outerjoin(parked, parked.c.job == jobs.c.id)
    return select(jobs, is_parked).select_from(together).where(jobs.c.tenant == tenant)


def _job_row(columns: dict[str, Any]) -> JobRow:
    return JobRow(job_id=columns.pop("id"), **columns)
