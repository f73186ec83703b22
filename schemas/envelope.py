"""An event before and after it is appended, and its forms on the wire.

A `NewEvent` has no version and no position: only the log gives these. A `RecordedEvent` has both,
and keeps the payload's bytes as they were written beside their decoded form.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

from schemas.decoding import decode
from schemas.errors import UndecodableEvent
from schemas.events import AnyPayload, Known
from schemas.ids import JobRef, Position

SOURCE = "/headrace"


@dataclass(frozen=True)
class NewEvent:
    """An event to be appended. `cause` is the id of the event or command that led to it."""

    # Without slots, so that its bytes are made once.

    id: str
    time: datetime
    payload: Known
    cause: str = ""
    trace: str = ""

    @cached_property
    def data(self) -> bytes:
        """The payload as JSON, the bytes that the log and the archive keep."""
        # What `model_dump_json` calls, without its handling of options and the way over `str`.
        return self.payload.__pydantic_serializer__.to_json(self.payload)

    def recorded(self, ref: JobRef, project: str, version: int) -> "RecordedEvent":
        """What this is once it was appended as event `version` of its job."""
        return RecordedEvent(
            id=self.id,
            type=self.payload.type,
            tenant=ref.tenant,
            project=project,
            job=ref.job,
            version=version,
            time=self.time,
            cause=self.cause,
            trace=self.trace,
            data=self.data,
            payload=self.payload,
        )


class RecordedEvent(NamedTuple):
    """A fact: event number `version` of its job. `data` are the payload's recorded bytes.

    A tuple, for logs are read event by event, and a frozen dataclass takes three times as long to
    make.
    """

    id: str
    type: str
    tenant: str
    project: str
    job: str
    version: int
    time: datetime
    cause: str
    trace: str
    data: bytes
    payload: AnyPayload

    @property
    def stream_id(self) -> str:
        """The id of the entry in the job's own stream, which is also its SSE id."""
        return f"{self.version}-0"


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC with microseconds and `Z`: `2026-03-01T12:00:00.000000Z`."""
    in_utc = time if time.tzinfo is UTC else time.astimezone(UTC)
    return f"{in_utc.isoformat(timespec='microseconds')[:-6]}Z"


Decode = Callable[[str, bytes], AnyPayload]


def from_fields(fields: Mapping[bytes, bytes], decode: Decode = decode) -> RecordedEvent:
    """The event in a stream entry. Raises `UndecodableEvent`.

    With `decode_or_mark` only when more than its payload is damaged.
    """
    try:
        return _from_fields(fields, decode)
    except (KeyError, ValueError) as error:
        raise UndecodableEvent(
            fields.get(b"type", b"?").decode(errors="replace"), fields.get(b"data", b""), str(error)
        ) from error


def _from_fields(fields: Mapping[bytes, bytes], decode: Decode) -> RecordedEvent:
    event_type, data = fields[b"type"].decode(), fields[b"data"]
    return RecordedEvent(
        id=fields[b"id"].decode(),
        type=event_type,
        tenant=fields[b"tenant"].decode(),
        project=fields[b"project"].decode(),
        job=fields[b"job"].decode(),
        version=int(fields[b"version"]),
        time=datetime.fromisoformat(fields[b"time"].decode()),
        cause=fields[b"cause"].decode(),
        trace=fields[b"trace"].decode(),
        data=data,
        payload=decode(event_type, data),
    )


def entry_fields(event: RecordedEvent, at: Position) -> dict[str, str | bytes]:
    """The entry of a job's stream that `from_fields` reads; `at` is its place in the log."""
    return {
        "id": event.id,
        "at": at.entry_id,
        "type": event.type,
        "tenant": event.tenant,
        "project": event.project,
        "job": event.job,
        "version": str(event.version),
        "time": format_time(event.time),
        "cause": event.cause,
        "trace": event.trace,
        "data": event.data,
    }


def cloud_event(event: RecordedEvent) -> dict[str, Any]:
    """The event as a CloudEvents 1.0 JSON object: how others see it (HTTP, SSE, export).

    Extension attributes are lower case without punctuation, as the specification asks.
    """
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"{SOURCE}/{event.tenant}/{event.project}",
        "type": f"headrace.{event.type}",
        "subject": event.job,
        "time": format_time(event.time),
        "datacontenttype": "application/json",
        "tenant": event.tenant,
        "project": event.project,
        "job": event.job,
        "jobversion": event.version,
    }
    if event.cause:
        attributes["cause"] = event.cause
    if event.trace:
        attributes["traceparent"] = event.trace
    attributes["data"] = json.loads(event.data)
    return attributes
