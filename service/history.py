"""A job's history as people look at it: what each event changed, and how the job was at any time.

An event that cannot be read, or does not follow, is shown as such: the state is known up to the one
before it, and no further.
"""

import base64
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time
from enum import Enum
from typing import Any, NamedTuple

from pydantic import BaseModel

from eventstore import EventStore
from projector import HistoryBroken, advance
from schemas import (
    Job,
    JobRef,
    JobUnknown,
    RecordedEvent,
    SchemaError,
    cloud_event,
    decode_or_mark,
    format_time,
)

_VERSION = re.compile(r"[0-9]{1,9}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_EVERY_TIME = ("version", "updated_at")
"""What every event changes, which is therefore not worth showing."""


class Told(NamedTuple):
    """An event, the job before and after it, and why it could not be folded, if it could not.

    Behind an event that could not be folded `after` stays what it was.
    """

    event: RecordedEvent
    before: Job | None
    after: Job | None
    problem: str = ""

    def changes(self) -> Iterator[tuple[str, Any, Any]]:
        """Name, old and new value of each attribute that is another after the event."""
        if self.after is None or self.after is self.before:
            return
        old = self.before.__dict__ if self.before else {}
        for name, new in self.after.__dict__.items():
            # What a job begins with and nobody set, a round or an empty list, is not news.
            is_set = self.before is not None or new
            if name not in _EVERY_TIME and old.get(name) != new and is_set:
                yield name, old.get(name), new


async def read_history(store: EventStore, ref: JobRef) -> list[RecordedEvent]:
    """Every event of a job in order; what cannot be read comes as `Unreadable`.

    Raises `JobUnknown`.
    """
    events = await store.read_job(ref, decode=decode_or_mark)
    if not events or events[0].tenant != ref.tenant:
        raise JobUnknown(ref.job, "load")
    return events


def told(events: Sequence[RecordedEvent]) -> list[Told]:
    """The history event by event."""
    found: list[Told] = []
    state: Job | None = None
    problem = ""
    for event in events:
        if problem:
            found.append(Told(event, state, state, "not folded: it comes behind that event"))
            continue
        try:
            after = advance(state, event)
        except (HistoryBroken, SchemaError) as error:
            problem = str(error)
            found.append(Told(event, state, state, problem))
            continue
        found.append(Told(event, state, after))
        state = after
    return found


def state_at(events: Sequence[RecordedEvent], at: int | datetime) -> Job:
    """The job after its event `at`, or as it was at that time.

    Raises `ValueError` in words for the asker when there is no such moment, or its state cannot be
    known.
    """
    last = events[-1]
    if isinstance(at, datetime):
        reached = [event for event in events if event.time <= at]
        if not reached:
            first = format_time(events[0].time)
            raise ValueError(f"the job was queued at {first}, after that time")
    elif 1 <= at <= last.version:
        reached = [event for event in events if event.version <= at]
    else:
        raise ValueError(f"there is no version {at}: the job has 1 to {last.version}")
    history = told(reached)
    state, problem = history[-1].after, next((one.problem for one in history if one.problem), "")
    if problem or state is None:
        known = f"the state is known up to version {state.version}" if state else "nothing is known"
        raise ValueError(f"{problem}: {known}")
    return state


def parse_moment(text: str) -> int | datetime:
    """A version, or a time. Raises `ValueError` in words for the asker."""
    if _VERSION.fullmatch(text):
        return int(text)
    try:
        return parse_time(text)
    except ValueError as error:
        raise ValueError(f"neither a version (3) nor a time: {error}") from error


def parse_time(text: str) -> datetime:
    """A time with its zone, or a day, which begins at midnight UTC. Raises `ValueError`."""
    try:
        if _DATE.fullmatch(text):
            return datetime.combine(date.fromisoformat(text), time(), UTC)
        found = datetime.fromisoformat(text)
    except ValueError as error:
        hint = " (in a URL a + is written %2B)" if " " in text else ""
        raise ValueError(
            f"{text[:80]!r} is no time such as 2026-03-01T12:00:00Z or 2026-03-01{hint}"
        ) from error
    if found.tzinfo is None:
        raise ValueError(f"{text} lacks its zone: add Z for UTC, or +02:00")
    try:
        return found.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text} is in UTC before the year 1 or behind the year 9999") from error


def readable(value: Any) -> Any:
    """A value of a state as JSON takes it."""
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [readable(one) for one in value]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value


def outward(event: RecordedEvent) -> dict[str, Any]:
    """The event as a CloudEvent. Data that are no JSON stand there as they are, in base64."""
    try:
        return cloud_event(event)
    except ValueError:
        attributes = cloud_event(event._replace(data=b"null"))
        del attributes["data"]
        return attributes | {
            "datacontenttype": "application/octet-stream",
            "data_base64": base64.b64encode(event.data).decode(),
        }
