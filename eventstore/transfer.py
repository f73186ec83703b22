"""Moving a log: out as JSON lines, and into an empty log, maybe of another number of partitions.

An export has one CloudEvent a line with its `position` as an extension attribute, partition by
partition, in order. `data` stands last in its line and holds the very bytes that were appended:
reading and writing JSON anew would round numbers. The last line counts the events and has the
SHA-256 of all lines before it, so that a file that was cut or changed is noticed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from eventstore.entries import LogEntry
from eventstore.errors import ExportInterrupted, ImportRefused
from eventstore.following import Reset, subscribe
from eventstore.handling import WORK_CLASS
from eventstore.hub import Hub
from eventstore.keys import Keys
from eventstore.payloads import MAX_EVENT_BYTES
from eventstore.scripts import refusal
from eventstore.store import EventStore
from schemas import (
    JobRef,
    RecordedEvent,
    SchemaError,
    cloud_event,
    decode,
    format_time,
    is_id,
)
from schemas.events import (
    CancelRequested,
    JobCancelled,
    JobFailed,
    JobQueued,
    JobReady,
    JobStarted,
)

KIND = "export"
_DATA = b',"data":'
_TYPE = "headrace."
_ON_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")  # JSON has them between values only
_BATCH = 500
_BATCH_BYTES = 4 * 1024 * 1024
_START_OVER = (
    "import into a log without events: set HEADRACE_HOME to a new folder, or empty both servers; "
    "that is also what to do with what an interrupted import left"
)

OnProgress = Callable[[int, int], None]
"""Called with (done, all there is to do)."""


# --- lines ---------------------------------------------------------------------------------------


def event_line(entry: LogEntry, **attributes: str | bool) -> bytes:
    """The event as a CloudEvent on a line of its own, its data as they were appended.

    `attributes` are further extension attributes. Raises `ValueError` for data that are no JSON.
    """
    known = cloud_event(entry.event) | {"position": str(entry.position)} | attributes
    del known["data"]
    head = json.dumps(known, ensure_ascii=False, separators=(",", ":")).encode()
    return head[:-1] + _DATA + entry.event.data.translate(_ON_ONE_LINE) + b"}\n"


def _event_of(line: bytes) -> RecordedEvent:
    """The event that `event_line` wrote. Raises `SchemaError`, and what a wrong line leads to."""
    head, found, rest = line.removesuffix(b"}\n").partition(_DATA)
    if not found or not line.endswith(b"}\n"):
        raise ValueError("not an event")
    known: dict[str, Any] = json.loads(head + b"}")
    event = RecordedEvent(
        id=str(UUID(known["id"])),
        type=known["type"].removeprefix(_TYPE),
        tenant=known["tenant"],
        project=known["project"],
        job=known["job"],
        version=int(known["jobversion"]),
        time=datetime.fromisoformat(known["time"]).astimezone(UTC),
        cause=known.get("cause", ""),
        trace=known.get("traceparent", ""),
        data=rest,
        payload=decode(known["type"].removeprefix(_TYPE), rest),
    )
    if not (is_id(event.tenant) and is_id(event.project) and is_id(event.job)):
        raise ValueError("an id that cannot be one")
    if len(event.data) > MAX_EVENT_BYTES:
        raise ValueError("more data than an event may have")
    return event


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that stands under its name once the block has ended without an error, or not at all.

    Readable by its owner alone: it holds what people asked for.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


# --- out -----------------------------------------------------------------------------------------


async def export_log(
    hub: Hub, file: IO[bytes], *, tenant: str | None = None, on_progress: OnProgress | None = None
) -> int:
    """Write every event that there is when it begins, or every one of a tenant; how many.

    Raises `ExportInterrupted`, `RedisUnavailable`, `PostgresUnavailable`, `UndecodableEvent`.
    """
    store = hub.store
    partitions = range(store.partitions) if tenant is None else [store.partition(tenant)]
    ends = [end for number in partitions if (end := await store.log_end(number)).seq]
    total, before, events = sum(end.seq for end in ends), 0, 0
    digest = hashlib.sha256()
    for end in ends:
        reading = subscribe(hub, partition=end.partition, tenant=tenant)
        async for entry in reading:
            if isinstance(entry, Reset):
                raise ExportInterrupted("the log was repaired meanwhile: export it again")
            if entry.position.seq <= end.seq and isinstance(entry, LogEntry):
                line = event_line(entry)
                file.write(line)
                digest.update(line)
                events += 1
            if on_progress:
                on_progress(before + min(entry.position.seq, end.seq), total)
            if entry.position.seq >= end.seq:
                break
        await reading.aclose()
        before += end.seq
    file.write(_trailer(events, digest.hexdigest()))
    return events


def _trailer(events: int, digest: str) -> bytes:
    return json.dumps({"headrace": KIND, "events": events, "sha256": digest}).encode() + b"\n"


# --- in ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Living:
    """A job that has not ended where the export does."""

    ref: JobRef
    project: str
    work_class: str
    attempt: int = 0
    is_cancelling: bool = False


@dataclass(slots=True)
class Export:
    """What a whole export holds. `living` in the order in which they were queued."""

    events: int = 0
    jobs: int = 0
    living: dict[str, Living] = field(default_factory=dict)


def check_export(file: IO[bytes], *, on_progress: OnProgress | None = None) -> Export:
    """Read an export from its beginning to its end and say what it holds.

    Raises `ImportRefused` for one that was cut or changed, in which a job's versions are not 1, 2,
    3, …, or that cannot be decoded.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    found, digest, read = Export(), hashlib.sha256(), 0
    versions: dict[str, int] = {}
    builds: dict[tuple[str, str], int] = {}
    for number, line in enumerate(file, start=1):
        if line == _trailer(found.events, digest.hexdigest()):
            if file.read(1):
                raise ImportRefused(f"line {number} is the last of an export, and more follows")
            found.jobs = len(versions)
            return found
        try:
            event = _event_of(line)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            SchemaError,
        ) as error:
            raise ImportRefused(_not_an_event(number, line, error)) from error
        _take(found, event, versions, builds, number)
        digest.update(line)
        read += len(line)
        if on_progress and number % _BATCH == 0:
            on_progress(read, size)
    raise ImportRefused(
        f"the file ends after {found.events} events without the line that ends an export: it was "
        "cut; export again"
    )


def _take(
    found: Export,
    event: RecordedEvent,
    versions: dict[str, int],
    builds: dict[tuple[str, str], int],
    number: int,
) -> None:
    """Count an event in. Raises `ImportRefused` where it cannot come next."""
    expected = versions.get(event.job, 0) + 1
    if event.version != expected:
        raise ImportRefused(
            f"line {number}: job {event.job} has version {event.version} where {expected} comes "
            "next: events are missing; export again"
        )
    if (expected == 1) is not isinstance(event.payload, JobQueued):
        raise ImportRefused(f"line {number}: job {event.job} does not begin with JobQueued")
    versions[event.job] = expected
    found.events += 1
    match event.payload:
        case JobQueued(tier=tier):
            ref = JobRef(event.tenant, event.job)
            found.living[event.job] = Living(ref, event.project, WORK_CLASS[tier])
        case JobStarted(attempt=attempt) if event.job in found.living:
            found.living[event.job].attempt = attempt
        case CancelRequested() if event.job in found.living:
            found.living[event.job].is_cancelling = True
        case JobReady() | JobFailed() | JobCancelled():
            found.living.pop(event.job, None)
    if isinstance(event.payload, JobReady):
        project = (event.tenant, event.project)
        build = event.payload.build_number
        if build <= builds.get(project, 0):
            raise ImportRefused(
                f"line {number}: build {build} of project {event.project} comes after build "
                f"{builds[project]}"
            )
        builds[project] = build


def _not_an_event(number: int, line: bytes, error: Exception) -> str:
    if b'"headrace"' in line[:20]:
        return (
            f"line {number} ends an export that had other events than this file: it was changed; "
            "export again"
        )
    if not line.endswith(b"\n"):
        return f"the file ends within line {number}: it was cut; export again"
    # Not the error's own words where they may hold the line's.
    reason = str(error) if isinstance(error, SchemaError) else "it is not an event of an export"
    return f"line {number} cannot be read: {reason}"


async def import_log(
    store: EventStore, file: IO[bytes], export: Export, *, on_progress: OnProgress | None = None
) -> None:
    """Write a checked export into an empty log, then queue its living jobs where they were.

    Raises `ImportRefused` when the log is not empty or somebody else writes to it. Whatever it is
    interrupted by, no job runs before all events are in; the log is not empty then.
    """
    await _refuse_unless_empty(store)
    file.seek(0)
    ends = [0] * store.partitions
    queued_at: dict[str, int] = {}
    done = 0
    for batch in _batches(file, export.events):
        parts: dict[int, list[RecordedEvent]] = {}
        for event in batch:
            part = parts.setdefault(store.partition(event.tenant), [])
            part.append(event)
            if event.version == 1 and event.job in export.living:
                queued_at[event.job] = ends[store.partition(event.tenant)] + len(part)
        for partition, events in parts.items():
            ends[partition] = await _restore(store, partition, ends[partition], events)
        done += len(batch)
        if on_progress:
            on_progress(done, export.events)
    for living in export.living.values():
        await _requeue(store, living, queued_at[living.ref.job])


async def _refuse_unless_empty(store: EventStore) -> None:
    for partition in range(store.partitions):
        end = await store.log_end(partition)
        archived = await store.archive.end(partition)
        if end.seq or archived:
            last = max(end, archived) if archived else end
            raise ImportRefused(f"the log has events already (up to {last}): {_START_OVER}")


def _batches(file: IO[bytes], events: int) -> Iterator[list[RecordedEvent]]:
    """The first `events` of a file, some hundreds or some megabytes at a time."""
    batch: list[RecordedEvent] = []
    size = 0
    for _ in range(events):
        line = file.readline()
        batch.append(_event_of(line))
        size += len(line)
        if len(batch) == _BATCH or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _restore(store: EventStore, partition: int, seq: int, events: list[RecordedEvent]) -> int:
    """Write events behind `seq` of a partition; the seq of the last one."""
    keys = Keys(partition)
    numbers: dict[str, int] = {}
    args: list[Any] = [seq]
    for event in events:
        args += [
            numbers.setdefault(event.job, len(numbers) + 1),
            event.id,
            event.type,
            event.tenant,
            event.project,
            event.job,
            event.version,
            format_time(event.time),
            event.cause,
            event.trace,
            event.data,
        ]
    names = [keys.meta, keys.log, keys.bell, *map(keys.job, numbers)]
    answer = await store.scripts(partition, "restore", names, args)
    match answer:
        case [b"ok", last]:
            return int(last)
        case [b"refused", b"SeqConflict", actual]:
            raise ImportRefused(
                f"somebody else writes to partition {partition} (it has {actual} events, {seq} "
                f"were imported): stop what runs on these servers, and {_START_OVER}"
            )
        case [b"refused", b"JobThere", job]:
            raise ImportRefused(f"Redis has events of job {job.decode()} already: {_START_OVER}")
    raise refusal(answer, partition=partition)


async def _requeue(store: EventStore, living: Living, seq: int) -> None:
    ref, keys = living.ref, store.keys(living.ref.tenant)
    answer = await store.scripts(
        keys.partition,
        "requeue",
        [*keys.admission(ref.tenant), keys.cancelling],
        [
            ref.job,
            ref.tenant,
            living.project,
            living.work_class,
            living.attempt,
            seq,
            store.tenant_cap,
            int(living.is_cancelling),
        ],
    )
    if answer[0] != b"ok":
        raise refusal(answer, partition=keys.partition, job=ref.job)
