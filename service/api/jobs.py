"""Jobs over HTTP: submit, cancel, one, lists."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from unicodedata import category

from fastapi import APIRouter, Header, Query, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from uuid6 import uuid7

from eventstore import Handled, PostgresUnavailable
from projector import JobRow, UnknownCursor, job_by_id, list_jobs, row_of
from schemas import Job, JobRef, Position, Slug, Status, is_id
from schemas.commands import RequestBuild, RequestCancel
from schemas.events import MAX_GOAL_CHARS, Text, Tier
from service.api.bases import find_build, with_files
from service.api.parts import OwnParts, Parts, Tenant, load, own_ref
from service.api.reading import POSITION, ReadModel
from service.history import parse_moment, parse_time, read_history, state_at
from service.quotas import NOTHING_WANTED, Wanted
from service.refusals import Unusable

MAX_WORDS_CHARS = 200
LAST_NUMBER = 2**31 - 1
router = APIRouter()


def _goal(text: str) -> str:
    text = text.strip()
    if not text:
        raise ValueError("it is empty: say in a sentence what to build")
    if len(text) > MAX_GOAL_CHARS:
        raise ValueError(f"it has {len(text)} characters, at most {MAX_GOAL_CHARS} fit")
    if any(category(char) == "Cc" and char not in "\n\r\t\x85" for char in text):
        raise ValueError("it contains control characters: say it in plain text")
    if all(category(char)[0] in "CMZ" for char in text):
        raise ValueError("it has nothing that can be seen: say in a sentence what to build")
    return text


def _base_build(asked: Any) -> Any:
    is_number = isinstance(asked, int) and not isinstance(asked, bool)
    if asked is None or asked == "latest" or (is_number and 1 <= asked <= LAST_NUMBER):
        return asked
    raise ValueError(f"give the number of a build, 1 to {LAST_NUMBER}, or latest")


Goal = Annotated[Text, AfterValidator(_goal)]
BaseBuild = Annotated[
    Annotated[int, Field(ge=1, le=LAST_NUMBER)] | Literal["latest"] | None,
    # Before the union is tried, whose own words name its members.
    BeforeValidator(_base_build),
]
Time = Annotated[datetime, BeforeValidator(parse_time)]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", pattern=r"^[A-Za-z0-9._:-]{1,128}$"),
]


class JobRequest(BaseModel):
    """What to build, and for whom."""

    model_config = ConfigDict(extra="forbid")

    goal: Goal
    project_id: Slug = "default"
    user_id: Slug = "anonymous"
    tier: Tier | None = None
    limits: Wanted = NOTHING_WANTED
    base_build: BaseBuild = None
    in_place: bool = False

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if self.in_place and self.base_build is None:
            raise ValueError("in_place needs a base_build, whose preview it takes over")
        return self


class Accepted(BaseModel):
    """A job that is on its way. `position` is where the log stands with it."""

    job_id: str
    project_id: str
    status: Status
    version: int
    position: str | None
    url: str
    stream_url: str


class JobPage(BaseModel):
    """Jobs, newest first; `next` is the `before` of the next page."""

    jobs: list[JobRow]
    next: str | None


@router.post("/v1/jobs", status_code=202)
async def submit(
    parts: OwnParts,
    request: JobRequest,
    response: Response,
    owner: Tenant,
    reader: ReadModel,
    key: IdempotencyKey = None,
) -> Accepted:
    """Queue a build, from scratch or from the files of another.

    With `Idempotency-Key`, repeating the request gives the first answer.
    """
    command = RequestBuild(
        tenant=owner,
        user_id=request.user_id,
        project_id=request.project_id,
        goal=request.goal,
    )

    async def made() -> RequestBuild:
        if request.base_build is None:
            return command
        number = request.base_build if isinstance(request.base_build, int) else None
        found = await find_build(reader, owner, request.project_id, number)
        base = with_files(found, "base_build")
        return replace(
            command,
            base_build=found.number,
            base_manifest=base.manifest,
            base_job=found.job_id,
            in_place=request.in_place,
        )

    handled = await request_once(
        parts,
        owner,
        made,
        key=key,
        asked=request.model_dump(),
        tier=request.tier,
        wanted=request.limits,
    )
    return accepted(handled.job, handled.position, response)


async def request_once(
    parts: Parts,
    owner: str,
    made: Callable[[], Awaitable[RequestBuild]],
    *,
    key: str | None,
    asked: dict[str, Any],
    tier: Tier | None = None,
    wanted: Wanted = NOTHING_WANTED,
) -> Handled:
    """Request the build that is made from what was `asked` and from what is there now.

    It gets the limits of its tier, and is refused when its tenant's day is used up. What was
    answered before is answered alike, also when something else is there by now.
    """
    ref = JobRef(owner, str(uuid7()))
    if key is not None:
        again = await parts.handler.answered(ref, RequestBuild, command_id=key, asked=asked)
        if again is not None:
            return again
    allowed = await parts.quotas.allow(
        await made(), tier=tier, wanted=wanted, now=parts.handler.clock()
    )
    return await parts.handler.handle(
        ref, allowed.command, command_id=key, asked=asked, day_limits=allowed.day_limits
    )


@router.post("/v1/jobs/{job_id}/cancel", status_code=202)
async def cancel(
    parts: OwnParts, job_id: str, response: Response, owner: Tenant, key: IdempotencyKey = None
) -> Accepted:
    """Stop a job: at once while it is queued, else as soon as its worker has stopped it."""
    state = await load(parts, owner, job_id)
    handled = await parts.handler.handle(
        JobRef(owner, job_id), RequestCancel(by=state.user_id), command_id=key
    )
    return accepted(handled.job, handled.position, response)


@router.get("/v1/jobs")
async def jobs(
    owner: Tenant,
    reader: ReadModel,
    project: Annotated[Slug | None, Query()] = None,
    status: Status | None = None,
    tier: Tier | None = None,
    since: Annotated[Time | None, Query()] = None,
    until: Annotated[Time | None, Query()] = None,
    goal: Annotated[Text | None, Query(max_length=MAX_WORDS_CHARS)] = None,
    before: Annotated[Slug | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    """The tenant's jobs, newest first."""
    if since and until and since >= until:
        raise Unusable("until", f"it is not behind since ({since.isoformat()})")
    async with reader.connection("jobs") as connection:
        try:
            found = await list_jobs(
                connection,
                owner,
                project=project,
                status=status,
                tier=tier,
                since=since,
                until=until,
                goal=goal,
                before=before,
                limit=limit,
            )
        except UnknownCursor as error:
            raise Unusable("before", str(error)) from error
    return JobPage(jobs=found, next=found[-1].job_id if len(found) == limit else None)


@router.get("/v1/jobs/{job_id}")
async def job(
    parts: OwnParts,
    job_id: str,
    owner: Tenant,
    reader: ReadModel,
    at: Annotated[str | None, Query()] = None,
) -> JobRow:
    """One job; from the log where the read model does not have it yet, or does not answer.

    With `at`, a version or a time: as it was then, folded from its events.
    """
    if at is not None:
        return await _job_at(parts, owner, job_id, at)
    if is_id(job_id):
        try:
            async with reader.connection("jobs") as connection:
                found = await job_by_id(connection, owner, job_id)
        except PostgresUnavailable:
            found = None
        if found is not None:
            return found
    return row_of(await load(parts, owner, job_id))


async def _job_at(parts: OwnParts, owner: str, job_id: str, at: str) -> JobRow:
    try:
        moment = parse_moment(at)
    except ValueError as error:
        raise Unusable("at", str(error)) from error
    events = await read_history(parts.handler.store, own_ref(owner, job_id))
    try:
        return row_of(state_at(events, moment))
    except ValueError as error:
        raise Unusable("at", str(error)) from error


def accepted(job: Job, position: Position | None, response: Response) -> Accepted:
    """The answer to whoever asked for this job."""
    response.headers["Location"] = f"/v1/jobs/{job.job}"
    if position is not None:
        response.headers[POSITION] = str(position)
    return Accepted(
        job_id=job.job,
        project_id=job.project,
        status=job.status,
        version=job.version,
        position=str(position) if position else None,
        url=f"/v1/jobs/{job.job}",
        stream_url=f"/v1/jobs/{job.job}/stream",
    )
