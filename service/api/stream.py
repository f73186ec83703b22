"""A job's stream over HTTP: server-sent events, resumed by `Last-Event-ID`."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent

from eventstore import START, JobEntry, JobEvent, Reset, follow
from schemas import TERMINAL_TYPES, JobRef, cloud_event
from service import problems
from service.api.parts import OwnParts, Tenant, load

_ENTRY_ID = re.compile(r"(\d{1,9})-(\d{1,9})")
router = APIRouter()


@dataclass(frozen=True, slots=True)
class Followed:
    """A job to be streamed: after which entry, and what was known of the job when it began."""

    ref: JobRef
    after: str
    version: int
    ended: bool


async def _followed(
    parts: OwnParts,
    job_id: str,
    owner: Tenant,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Followed:
    state = await load(parts, owner, job_id)
    match = _ENTRY_ID.fullmatch(last_event_id or START)
    if match is None:
        raise HTTPException(400, "Last-Event-ID must be the id of an event of this stream")
    if state.is_settled and int(match[1]) == state.version:
        raise problems.NothingMore
    return Followed(JobRef(owner, job_id), match[0], state.version, state.is_terminal)


@router.get("/v1/jobs/{job_id}/stream", response_class=EventSourceResponse)
async def stream(
    parts: OwnParts, target: Annotated[Followed, Depends(_followed)]
) -> AsyncIterator[Any]:
    """The job's events and progress as they come, from `Last-Event-ID` on, to its end."""
    ended = target.ended
    async for entry in follow(parts.hub, target.ref, target.after):
        yield _server_sent(entry)
        if isinstance(entry, JobEvent):
            ended = ended or entry.event.type in TERMINAL_TYPES
            # Events may follow the one that ended the job: its preview expires, or is woken.
            may_be_last = ended and entry.event.version >= target.version
            if may_be_last:
                job = await parts.handler.load(target.ref)
                if job.version == entry.event.version and job.is_settled:
                    return


def _server_sent(entry: JobEntry) -> ServerSentEvent:
    if isinstance(entry, JobEvent):
        return ServerSentEvent(id=entry.id, event=entry.event.type, data=cloud_event(entry.event))
    if isinstance(entry, Reset):
        return ServerSentEvent(id=START, event="reset", data={"reason": "events were lost"})
    raw = f'{{"kind":"{entry.kind}","time":"{entry.time}","data":{entry.data.decode()}}}'
    return ServerSentEvent(id=entry.id, event="progress", raw_data=raw)
