"""The log as a person reads it: its newest events, what comes, and an event in a line."""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from eventstore import EventStore, Hub, LogEntry, Reset, subscribe
from schemas import Position
from schemas.events import (
    AnyPayload,
    CancelRequested,
    ChecksFailed,
    JobCancelled,
    JobFailed,
    JobQueued,
    JobReady,
    JobStarted,
    PhaseCompleted,
    PhaseStarted,
    PreviewExpired,
    PreviewPaused,
    PreviewRequested,
    PreviewResumed,
    RetryScheduled,
    SandboxCreated,
    UnknownEvent,
    Unreadable,
)

SHORT = 8
_FIRST_LOOK = 200
_LONGEST_LOOK = 20_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events to show; None and empty leave all in. `job` may be the end of a job's id."""

    tenant: str | None = None
    project: str | None = None
    job: str | None = None
    types: frozenset[str] = frozenset()

    def has(self, entry: LogEntry) -> bool:
        """Whether an event is wanted."""
        event = entry.event
        return (
            self.tenant in (None, event.tenant)
            and self.project in (None, event.project)
            and (self.job is None or event.job.endswith(self.job))
            and (not self.types or event.type in self.types)
        )


async def newest(hub: Hub, ends: Sequence[Position], wanted: Wanted, count: int) -> list[LogEntry]:
    """The newest `count` wanted events at or before these ends of partitions, the newest last."""
    found: list[LogEntry] = []
    for end in ends:
        found += await _newest_of(hub, end, wanted, count)
    found.sort(key=lambda entry: entry.event.time)
    return found[-count:] if count else []


async def _newest_of(hub: Hub, end: Position, wanted: Wanted, count: int) -> list[LogEntry]:
    """The same of one partition: a look at its last part, then at ever longer ones before it."""
    found: list[LogEntry] = []
    look = max(count, _FIRST_LOOK)
    while end.seq and len(found) < count:
        start = await position_at(hub.store, end.partition, end.seq - look)
        earlier: deque[LogEntry] = deque(maxlen=count - len(found))
        async for entry in between(hub, start, end):
            if isinstance(entry, LogEntry) and wanted.has(entry):
                earlier.append(entry)
        found = [*earlier, *found]
        end = start
        look = min(look * 4, _LONGEST_LOOK)
    return found


async def between(hub: Hub, after: Position, end: Position) -> AsyncIterator[LogEntry | Reset]:
    """The events behind `after` (seq 0: from the beginning) up to `end`, of one partition."""
    seen = after.seq
    reading = subscribe(hub, partition=end.partition, after=after if after.seq else None)
    try:
        while seen < end.seq:
            entry = await anext(reading)
            if isinstance(entry, LogEntry):
                seen = entry.position.seq
                if seen <= end.seq:
                    yield entry
            elif isinstance(entry, Reset):
                seen = entry.after.seq if entry.after else 0
                yield entry
    finally:
        await reading.aclose()


async def position_at(store: EventStore, partition: int, seq: int) -> Position:
    """The position with this seq; one with seq 0 before the first."""
    if seq <= 0:
        return Position(partition, 0, 0)
    registration = await store.archive.register.one(partition)
    epoch = max(one.number for one in registration.epochs if one.start_seq <= seq)
    return Position(partition, epoch, seq)


def line(entry: LogEntry) -> str:
    """An event in a line: where, when, whose, what, and what tells most about it."""
    event = entry.event
    whose = f"{event.tenant}/{event.project}"
    return (
        f"{entry.position!s:<9} {event.time:%m-%d %H:%M:%S} {whose:<14} {event.job[-SHORT:]} "
        f"{event.version:>2} {event.type:<14} {_plain(_facts(event.payload))}"
    ).rstrip()


def _plain(text: str) -> str:
    """On one line and without what a terminal would take for a command."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _facts(payload: AnyPayload) -> str:
    match payload:
        case JobQueued(tier=tier, goal=goal):
            return f"{tier}: {goal}"
        case JobStarted(attempt=attempt, worker=worker):
            return f"attempt {attempt} by {worker}"
        case PhaseStarted(phase=phase, round=number):
            return phase if number == 1 else f"{phase}, round {number}"
        case RetryScheduled(phase=phase, step=step, tries=tries, message=message):
            return f"{phase}: {step} failed {tries} times: {message}"
        case PhaseCompleted(phase=phase, duration_ms=duration_ms):
            return f"{phase} in {duration_ms / 1000:.2f} s"
        case SandboxCreated(provider=provider, sandbox_id=sandbox_id):
            return f"{provider} {sandbox_id}"
        case ChecksFailed(phase=phase, command=command, exit_code=exit_code, message=message):
            return f"{phase}: {message or f'{command} ended with {exit_code}'}"
        case CancelRequested(by=by, reason=reason) | JobCancelled(by=by, reason=reason):
            return f"by {by} {reason}"
        case JobReady(build_version=build, preview_url=url):
            return f"{build} {url or ''}"
        case JobFailed(kind=kind, debug_id=debug_id, message=message):
            return f"{kind} {debug_id}: {message}"
        case PreviewResumed(preview_url=url):
            return url
        case PreviewExpired(reason=reason) | Unreadable(reason=reason):
            return reason
        case PreviewRequested(by=by):
            return f"by {by}"
        case PreviewPaused() | UnknownEvent():
            return ""
