"""The preview of a build over HTTP: how it is, asking for it, ending it."""

from datetime import datetime, timedelta

from fastapi import APIRouter, Response
from pydantic import BaseModel

from eventstore import Handled
from schemas import Job, JobRef
from schemas.commands import ExpirePreview, RequestPreview
from service.api.bases import find_build
from service.api.jobs import IdempotencyKey
from service.api.parts import OwnParts, Tenant, load
from service.api.projects import Number
from service.api.reading import POSITION, Reader, ReadModel

LASTS = timedelta(minutes=20)
"""A preview that was asked for is there for so long at least."""

router = APIRouter(prefix="/v1/projects/{project_id}/builds/{number}/preview")


class PreviewState(BaseModel):
    """A build's preview as the log has it now.

    `preview` is `running`, `waking` (a worker has it), `paused`, `expired`, or null for a build
    without an app. `expires_at` is when it ends by itself. `preview_url` may lead nowhere while it
    is woken: the stream tells when it answers, and where.
    """

    job_id: str
    project_id: str
    number: int
    preview: str | None
    preview_url: str | None
    sandbox_id: str | None
    expires_at: datetime | None
    url: str
    stream_url: str


@router.get("")
async def preview(
    parts: OwnParts, owner: Tenant, reader: ReadModel, project_id: str, number: Number
) -> PreviewState:
    """How the preview of a build is; from the log, not the read model."""
    return _state(await _job(parts, owner, reader, project_id, number))


@router.post("", status_code=202)
async def request_preview(
    parts: OwnParts,
    owner: Tenant,
    reader: ReadModel,
    project_id: str,
    number: Number,
    response: Response,
    key: IdempotencyKey = None,
) -> PreviewState:
    """Let the preview answer for the next twenty minutes at least: 202 when a worker sees to it.

    It is kept alive, woken, or made anew from the build's files. 200 where nothing is to do.
    """
    job = await _job(parts, owner, reader, project_id, number)
    command = RequestPreview(by=job.user_id, until=parts.handler.clock() + LASTS)
    if key is None:
        return _answer(await parts.handler.handle(_ref(job), command, job=job), response)
    # What was asked for does not depend on when: repeated with its key, it is the same request.
    handled = await parts.handler.handle(
        _ref(job), command, job=job, command_id=key, asked="RequestPreview"
    )
    return _answer(handled, response)


@router.delete("", status_code=202)
async def end_preview(
    parts: OwnParts,
    owner: Tenant,
    reader: ReadModel,
    project_id: str,
    number: Number,
    response: Response,
) -> PreviewState:
    """End the preview; its files stay. Its sandbox is ended within seconds. 200 where it was."""
    job = await _job(parts, owner, reader, project_id, number)
    command = ExpirePreview(f"ended by {job.user_id}")
    return _answer(await parts.handler.handle(_ref(job), command, job=job), response)


async def _job(parts: OwnParts, owner: str, reader: Reader, project_id: str, number: int) -> Job:
    found = await find_build(reader, owner, project_id, number)
    return await load(parts, owner, found.job_id)


def _ref(job: Job) -> JobRef:
    return JobRef(job.tenant, job.job)


def _answer(handled: Handled, response: Response) -> PreviewState:
    state = _state(handled.job)
    response.headers["Location"] = state.url
    if handled.position is not None:
        response.headers[POSITION] = str(handled.position)
    if not handled.events and handled.job.is_settled:
        response.status_code = 200
    return state


def _state(job: Job) -> PreviewState:
    assert job.build_number is not None  # noqa: S101 - found by it
    return PreviewState(
        job_id=job.job,
        project_id=job.project,
        number=job.build_number,
        preview=job.preview,
        preview_url=job.preview_url,
        sandbox_id=job.sandbox_id,
        expires_at=job.sandbox_ends_at,
        url=f"/v1/projects/{job.project}/builds/{job.build_number}/preview",
        stream_url=f"/v1/jobs/{job.job}/stream",
    )
