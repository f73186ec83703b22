"""Following a job, or the log: what was, what is, and what comes, in order and without a hole.

Redis has the newest part of every history, the archive has all but the newest. A follower reads
Redis behind what it has, and where the next event is not the next number, it asks the archive: so
it does not matter when a stream expires or a log is trimmed, nor who is faster.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from eventstore.entries import LogEntry
from eventstore.errors import LogUnverified
from eventstore.hub import Hub
from eventstore.reading import Fields, stream_behind, stream_range
from eventstore.store import EventStore
from schemas import JobRef, Position, RecordedEvent, from_fields

START = "0-0"
LOOK_AGAIN_S = 15.0
_BATCH = 256


@dataclass(frozen=True, slots=True)
class ProgressLine:
    """Something worth showing that is not a fact. `kind`: log, file, note, capped."""

    id: str
    kind: str
    time: str
    data: bytes


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event of the followed job. `id` is its entry id, `<version>-0`."""

    id: str
    event: RecordedEvent


@dataclass(frozen=True, slots=True)
class Reset:
    """The history is not the one that the follower has seen: a lost end was repaired.

    Forget everything behind `after`; what comes next is the history from there. Of a job it is the
    whole history, of a log the part behind `after`, a position (None: all of it).
    """

    after: Position | None = None
    id: str = START


@dataclass(frozen=True, slots=True)
class Passed:
    """A subscriber's checkpoint may move to `position`: nothing for it stood before."""

    position: Position


JobEntry = JobEvent | ProgressLine | Reset
Subscribed = LogEntry | Passed | Reset


async def follow(hub: Hub, ref: JobRef, after: str = START) -> AsyncGenerator[JobEntry, None]:
    """Every event of a job behind entry `after`, in order, then live, with progress between.

    Endless: the caller stops when it has seen what it wants, and reads as slowly as it likes.
    Events come at least once under a stable id. Raises `RedisUnavailable`, `PostgresUnavailable`;
    follow again after the last id received.
    """
    last, last_event = after, ""
    with hub.listen_job(ref.job) as waker:
        while True:
            entries = await _job_entries(hub, ref, last, last_event)
            for entry in entries:
                yield entry
                last = entry.id
                if not isinstance(entry, ProgressLine):
                    last_event = entry.event.id if isinstance(entry, JobEvent) else ""
            if len(entries) < _BATCH and not (entries and isinstance(entries[-1], Reset)):
                await waker.wait(LOOK_AGAIN_S)


async def _job_entries(hub: Hub, ref: JobRef, last: str, last_event: str) -> Sequence[JobEntry]:
    """The next entries behind `last`, maybe none. The first event among them is the next one.

    `last_event`: the id of the last event, '' where the follower knows no more than its version.
    Fewer than a batch are all there were, unless the history begins anew.
    """
    store, seen = hub.store, _version(last)
    key = store.keys(ref.tenant).job(ref.job)
    async with hub.looking:
        # The last event is looked at behind what comes next: of a history that is made anew
        # meanwhile it is seen to be another one.
        found, there = await stream_behind(store.redis, key, last, count=_BATCH, at=f"{seen}-0")
        if not last_event or (there and there[b"id"].decode() == last_event):
            if found and _continues(seen, found[0]):
                return [_entry(entry_id, fields) for entry_id, fields in found]
            if there and not found:
                return []
        # The stream has expired, or was put back with its newest event alone, or is shorter than
        # what the follower has, or another one.
        history = await store.read_job(ref)
    if len(history) < seen or (last_event and history[seen - 1].id != last_event):
        return [Reset()]
    return [JobEvent(event.stream_id, event) for event in history if event.version > seen]


def _continues(seen: int, entry: tuple[str, Fields]) -> bool:
    entry_id, fields = entry
    return _version(entry_id) == (seen + 1 if b"type" in fields else seen)


def _version(entry_id: str) -> int:
    return int(entry_id.split("-")[0])


def _entry(entry_id: str, fields: Fields) -> JobEntry:
    if b"type" in fields:
        return JobEvent(entry_id, from_fields(fields))
    return _progress(entry_id, fields)


def _progress(entry_id: str, fields: Fields) -> ProgressLine:
    return ProgressLine(
        id=entry_id,
        kind=fields[b"kind"].decode(),
        time=fields[b"time"].decode(),
        data=fields[b"data"],
    )


async def read_progress(store: EventStore, ref: JobRef) -> AsyncGenerator[ProgressLine, None]:
    """The lines of progress that a job's stream holds now, in order.

    None once the stream has expired: the archive has only events. Raises `RedisUnavailable`.
    """
    key, last = store.keys(ref.tenant).job(ref.job), START
    while found := await stream_range(store.redis, key, after=last, count=_BATCH):
        for entry_id, fields in found:
            if b"type" not in fields:
                yield _progress(entry_id, fields)
        last = found[-1][0]


async def subscribe(
    hub: Hub,
    *,
    partition: int | None = None,
    tenant: str | None = None,
    after: Position | None = None,
) -> AsyncGenerator[Subscribed, None]:
    """Every event of a partition, or of one tenant, behind position `after`, in order, then live.

    Endless. The caller keeps the checkpoint: the position of the last entry that it has dealt with,
    or that `Passed` names. Raises `RedisUnavailable`, `PostgresUnavailable`; subscribe again from
    the checkpoint. Raises `LogUnverified` when events are in neither log nor archive.
    """
    store = hub.store
    if partition is None:
        if tenant is None:
            raise ValueError("subscribe to a partition or to a tenant")
        partition = store.partition(tenant)
    with hub.listen_events(partition) as waker:
        last = after if after and after.seq else None
        while True:
            while entries := await _log_entries(store, partition, last):
                for entry in entries:
                    if isinstance(entry, Reset) or tenant is None or entry.event.tenant == tenant:
                        yield entry
                final = entries[-1]
                last = final.after if isinstance(final, Reset) else final.position
                if tenant is not None and last is not None:
                    yield Passed(last)
            await waker.wait(LOOK_AGAIN_S)


async def _log_entries(
    store: EventStore, partition: int, last: Position | None
) -> Sequence[LogEntry | Reset]:
    """The next entries behind `last`, maybe none; a hole in Redis is filled from the archive."""
    seen = last.seq if last else 0
    entries = _next(seen, await store.read_log(partition, last, count=_BATCH))
    # What stands in another epoch may as well go on behind an end that was lost.
    if entries and (last is None or entries[0].position.epoch == last.epoch):
        return entries
    end = await store.log_end(partition)
    if last is not None and (end.seq, end.epoch) != (seen, last.epoch):
        shared = (await store.archive.register.one(partition)).shared_with(last, end)
        if shared != last:
            return [Reset(shared if shared.seq else None)]
    if entries or end.seq == seen:
        return entries
    if archived := _next(seen, await store.archive.read_log(partition, last, count=_BATCH)):
        return archived
    # Appended after the first look, then; or it is nowhere.
    if again := _next(seen, await store.read_log(partition, last, count=_BATCH)):
        return again
    raise LogUnverified(partition, f"the event with seq {seen + 1} is nowhere")


def _next(seen: int, entries: Sequence[LogEntry]) -> list[LogEntry]:
    """Those of `entries` that come next behind seq `seen`, up to the first hole."""
    return [entry for number, entry in enumerate(entries, seen + 1) if entry.position.seq == number]
