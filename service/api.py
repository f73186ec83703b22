"""The HTTP API: commands go to the log, questions to the read model, followers to the hub."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any
from unicodedata import category

import anyio
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import AfterValidator, BaseModel, ConfigDict
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid6 import uuid7

from eventstore import (
    START,
    CommandHandler,
    EventStoreError,
    Hub,
    JobEntry,
    JobEvent,
    PostgresUnavailable,
    Reset,
    follow,
    postgres_errors,
    redis_errors,
)
from projector import JobRow, job_by_id, list_jobs, row_of
from schemas import (
    TERMINAL_TYPES,
    Job,
    JobRef,
    JobUnknown,
    Position,
    Slug,
    Status,
    cloud_event,
    is_id,
)
from schemas.commands import RequestBuild, RequestCancel
from schemas.events import MAX_GOAL_CHARS, Text, Tier
from service import problems
from service.body_limit import BodyLimit
from service.keys import KeyRing

MAX_BODY_BYTES = 256 * 1024
HEALTH_S = 2.0
QUERY_S = 5.0
_ENTRY_ID = re.compile(r"(\d{1,9})-(\d{1,9})")


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


Goal = Annotated[Text, AfterValidator(_goal)]
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
    tier: Tier = "free"


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


@dataclass(frozen=True, slots=True)
class Parts:
    """What the API is made of."""

    handler: CommandHandler
    hub: Hub
    engine: AsyncEngine
    keys: KeyRing


@dataclass(frozen=True, slots=True)
class Followed:
    """A job to be streamed: after which entry, and what was known of the job when it began."""

    ref: JobRef
    after: str
    version: int
    ended: bool


def create_api(parts: Parts) -> FastAPI:
    """The API over these parts."""
    app = FastAPI(title="Headrace", version="0.1.0", docs_url=None, redoc_url=None)
    problems.install(app)
    app.add_middleware(BodyLimit, most_bytes=MAX_BODY_BYTES)
    handler = parts.handler

    async def tenant(authorization: Annotated[str, Header()] = "") -> str:
        scheme, _, key = authorization.partition(" ")
        found = None
        if scheme.lower() == "bearer" and key:
            found = await parts.keys.tenant_of(key.strip())
        if found is None:
            raise HTTPException(401, "Send your key as `Authorization: Bearer <key>`")
        return found

    Tenant = Annotated[str, Depends(tenant)]  # noqa: N806 - a type

    async def load(owner: str, job_id: str) -> Job:
        if is_id(job_id):
            job = await handler.load(JobRef(owner, job_id))
            if job.tenant == owner:
                return job
        # In the words of `handler.load`: another tenant's job and none must look the same.
        raise JobUnknown(job_id[:80], "load")

    @app.post("/v1/jobs", status_code=202)
    async def submit(
        request: JobRequest, response: Response, owner: Tenant, key: IdempotencyKey = None
    ) -> Accepted:
        """Queue a build. With `Idempotency-Key`, repeating the request gives the first answer."""
        command = RequestBuild(
            tenant=owner,
            user_id=request.user_id,
            project_id=request.project_id,
            goal=request.goal,
            tier=request.tier,
        )
        handled = await handler.handle(JobRef(owner, str(uuid7())), command, command_id=key)
        return _accepted(handled.job, handled.position, response)

    @app.get("/v1/jobs")
    async def jobs(
        owner: Tenant,
        project: Annotated[Slug | None, Query()] = None,
        status: Status | None = None,
        before: Annotated[Slug | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> JobPage:
        """The tenant's jobs, newest first."""
        async with _read_model(parts) as connection:
            found = await list_jobs(
                connection, owner, project=project, status=status, before=before, limit=limit
            )
        return JobPage(jobs=found, next=found[-1].job_id if len(found) == limit else None)

    @app.get("/v1/jobs/{job_id}")
    async def job(job_id: str, owner: Tenant) -> JobRow:
        """One job; from the log where the read model does not have it yet, or does not answer."""
        if is_id(job_id):
            try:
                async with _read_model(parts) as connection:
                    found = await job_by_id(connection, owner, job_id)
            except PostgresUnavailable:
                found = None
            if found is not None:
                return found
        return row_of(await load(owner, job_id))

    @app.post("/v1/jobs/{job_id}/cancel", status_code=202)
    async def cancel(
        job_id: str, response: Response, owner: Tenant, key: IdempotencyKey = None
    ) -> Accepted:
        """Stop a job: at once while it is queued, else as soon as its worker has stopped it."""
        state = await load(owner, job_id)
        handled = await handler.handle(
            JobRef(owner, job_id), RequestCancel(by=state.user_id), command_id=key
        )
        return _accepted(handled.job, handled.position, response)

    async def followed(
        job_id: str,
        owner: Tenant,
        last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    ) -> Followed:
        state = await load(owner, job_id)
        match = _ENTRY_ID.fullmatch(last_event_id or START)
        if match is None:
            raise HTTPException(400, "Last-Event-ID must be the id of an event of this stream")
        if state.is_terminal and int(match[1]) == state.version:
            raise problems.NothingMore
        return Followed(JobRef(owner, job_id), match[0], state.version, state.is_terminal)

    @app.get("/v1/jobs/{job_id}/stream", response_class=EventSourceResponse)
    async def stream(target: Annotated[Followed, Depends(followed)]) -> AsyncIterator[Any]:
        """The job's events and progress as they come, from `Last-Event-ID` on, to its end."""
        ended = target.ended
        async for entry in follow(parts.hub, target.ref, target.after):
            yield _server_sent(entry)
            if isinstance(entry, JobEvent):
                ended = ended or entry.event.type in TERMINAL_TYPES
                # Events may follow the one that ended the job: its preview expires.
                may_be_last = ended and entry.event.version >= target.version
                if may_be_last:
                    job = await handler.load(target.ref)
                    if job.version == entry.event.version:
                        return

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Whether both servers answer."""
        faults = {}
        for name, check in (("redis", _ask_redis), ("postgres", _ask_postgres)):
            try:
                with anyio.fail_after(HEALTH_S):
                    await check(parts)
            except (EventStoreError, TimeoutError) as error:
                faults[name] = str(error) or "no answer in time"
        status = {name: faults.get(name, "ok") for name in ("redis", "postgres")}
        return JSONResponse(
            {"status": "failing" if faults else "ok", **status}, 503 if faults else 200
        )

    return app


def _accepted(job: Job, position: Position | None, response: Response) -> Accepted:
    response.headers["Location"] = f"/v1/jobs/{job.job}"
    if position is not None:
        response.headers["Headrace-Position"] = str(position)
    return Accepted(
        job_id=job.job,
        project_id=job.project,
        status=job.status,
        version=job.version,
        position=str(position) if position else None,
        url=f"/v1/jobs/{job.job}",
        stream_url=f"/v1/jobs/{job.job}/stream",
    )


def _server_sent(entry: JobEntry) -> ServerSentEvent:
    if isinstance(entry, JobEvent):
        return ServerSentEvent(id=entry.id, event=entry.event.type, data=cloud_event(entry.event))
    if isinstance(entry, Reset):
        return ServerSentEvent(id=START, event="reset", data={"reason": "events were lost"})
    raw = f'{{"kind":"{entry.kind}","time":"{entry.time}","data":{entry.data.decode()}}}'
    return ServerSentEvent(id=entry.id, event="progress", raw_data=raw)


@asynccontextmanager
async def _read_model(parts: Parts) -> AsyncIterator[AsyncConnection]:
    """A connection to the read model, for a question that must be answered soon."""
    with postgres_errors(), anyio.fail_after(QUERY_S):
        async with parts.engine.connect() as connection:
            yield connection


async def _ask_redis(parts: Parts) -> None:
    with redis_errors():
        await parts.handler.store.redis.ping()


async def _ask_postgres(parts: Parts) -> None:
    with postgres_errors():
        async with parts.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
