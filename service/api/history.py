"""What happened to a job: its events, and its timeline."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from projector import PhaseRow, job_by_id, timeline
from schemas import is_id
from service.api.parts import OwnParts, Tenant, load, no_job, own_ref
from service.api.reading import STALE, ReadModel
from service.history import outward, read_history

router = APIRouter()


class Timeline(BaseModel):
    """When a job was in which phase, every attempt and round of it."""

    job_id: str
    status: str
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    phases: list[PhaseRow]


class Events(BaseModel):
    """All events of a job as CloudEvents 1.0, in order."""

    job_id: str
    events: list[dict[str, Any]]


@router.get("/v1/jobs/{job_id}/timeline")
async def job_timeline(parts: OwnParts, job_id: str, owner: Tenant, reader: ReadModel) -> Timeline:
    """When the job was in which phase. One that is not folded yet has none, and is stale."""
    if not is_id(job_id):
        raise no_job(job_id)
    async with reader.connection("jobs", "phases") as connection:
        found = await job_by_id(connection, owner, job_id)
        phases = await timeline(connection, owner, job_id)
    job: Any = found
    if job is None:
        job = await load(parts, owner, job_id)
        reader.response.headers[STALE] = "true"
    return Timeline(
        job_id=job_id,
        status=job.status,
        queued_at=job.queued_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        phases=phases,
    )


@router.get("/v1/jobs/{job_id}/events")
async def job_events(parts: OwnParts, job_id: str, owner: Tenant) -> Events:
    """Every event of the job, from the log: never stale."""
    events = await read_history(parts.handler.store, own_ref(owner, job_id))
    return Events(job_id=job_id, events=[outward(event) for event in events])
