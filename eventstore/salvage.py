"""Saving what Redis has of a broken partition: its log, and the events of its job streams.

Each event once, with whether the archive has it. What cannot be read is saved as the fields it is.
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from redis.asyncio import Redis
from sqlalchemy import Select, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore.connection import postgres_errors, redis_errors
from eventstore.entries import LogEntry
from eventstore.keys import Keys
from eventstore.reading import Fields, stream_end, stream_exact, stream_length, stream_range
from eventstore.tables import events_table
from eventstore.transfer import event_line
from schemas import Position, SchemaError, from_fields

_BATCH = 250
_SCANNED = 1_000

OnProgress = Callable[[str, int, int | None], None]
"""Called with (what is being done, how much of it is done, of how much if that is known)."""


@dataclass(slots=True)
class Found:
    """What Redis had of a broken partition: how many events, and those the archive has not."""

    events: int = 0
    unarchived: dict[str, list[str]] = field(default_factory=dict)
    """Job to the types of its events, in the order in which they were met."""
    file: Path | None = None
    """Where they were saved to; None where there was nothing."""


class Salvage:
    """Goes through what Redis has of partitions."""

    def __init__(self, redis: Redis, engine: AsyncEngine, on_progress: OnProgress) -> None:
        self._redis = redis
        self._engine = engine
        self._tell = on_progress

    async def save(self, keys: Keys, file: IO[bytes] | None) -> Found:
        """Go through log and job streams; the events of both, each once, go to `file`."""
        found, seen, total = Found(), set[bytes](), await stream_length(self._redis, keys.log)

        def take(entry_id: str, fields: Fields, *, archived: bool) -> None:
            found.events += 1
            if not archived:
                seen.add(fields.get(b"id", b""))
                job, kind = _text(fields.get(b"job", b"?")), _text(fields.get(b"type", b"?"))
                found.unarchived.setdefault(job, []).append(kind)
            if file:
                file.write(_saved(keys, entry_id, fields, archived=archived))

        async for batch in log_batches(self._redis, keys):
            places = [Position.at(keys.partition, entry_id) for entry_id, _ in batch]
            ids = await self._archived_at(places)
            for place, (entry_id, fields) in zip(places, batch, strict=True):
                archived = ids.get(place) == _text(fields.get(b"id", b""))
                take(entry_id, fields, archived=archived)
            self._tell(f"saving the log of partition {keys.partition}", found.events, total)
        streams = 0
        async for jobs in self._job_streams(keys):
            ids_of = await self._archived_ids([job for job, _ in jobs])
            for job, events in jobs:
                for version, fields in events.items():
                    known = ids_of.get((job, version)) == _text(fields.get(b"id", b""))
                    if not known and fields.get(b"id", b"") not in seen:
                        take(_text(fields.get(b"at", b"?")), fields, archived=False)
            streams += len(jobs)
            self._tell(f"saving the jobs of partition {keys.partition}", streams, None)
        return found

    async def _job_streams(self, keys: Keys) -> AsyncIterator[list[tuple[str, dict[int, Fields]]]]:
        """Jobs and the events in their streams by version, some at a time."""
        prefix = keys.job("")
        async for names in scanned(self._redis, f"{prefix}*"):
            for start in range(0, len(names), _BATCH):
                some = names[start : start + _BATCH]
                yield [(name.removeprefix(prefix), await self._events(name)) for name in some]

    async def _events(self, key: str) -> dict[int, Fields]:
        end = await stream_end(self._redis, key)
        newest = int(end.partition("-")[0]) if end else 0
        ids = [f"{version}-0" for version in range(1, newest + 1)]
        found = await stream_exact(self._redis, key, ids) if ids else []
        return {version: fields for version, fields in enumerate(found, 1) if fields is not None}

    async def _archived_at(self, positions: Sequence[Position]) -> dict[Position, str]:
        """The ids of the archived events at these positions, all of one partition."""
        table = events_table
        query = select(table.c.partition, table.c.epoch, table.c.seq, table.c.id).where(
            table.c.partition == positions[0].partition,
            tuple_(table.c.epoch, table.c.seq).in_([(one.epoch, one.seq) for one in positions]),
        )
        return {Position(*place): event_id for *place, event_id in await self._rows(query)}

    async def _archived_ids(self, jobs: Sequence[str]) -> dict[tuple[str, int], str]:
        """The ids of the archived events of these jobs, by job and version."""
        table = events_table
        query = select(table.c.job, table.c.version, table.c.id).where(table.c.job.in_(jobs))
        return {(row.job, row.version): row.id for row in await self._rows(query)}

    async def _rows(self, query: Select[Any]) -> list[Any]:
        with postgres_errors():
            async with self._engine.connect() as connection:
                return list((await connection.execute(query)).all())


async def log_batches(
    redis: Redis, keys: Keys, after: Position | None = None
) -> AsyncIterator[list[tuple[str, Fields]]]:
    """The entries of a partition's log behind `after`, some at a time."""
    last = after.entry_id if after else None
    while batch := await stream_range(redis, keys.log, after=last, count=_BATCH):
        yield batch
        last = batch[-1][0]


async def scanned(redis: Redis, pattern: str) -> AsyncIterator[list[str]]:
    """The keys that match, some at a time."""
    cursor: int | None = None
    while cursor != 0:
        with redis_errors():
            found: Any = await redis.scan(cursor or 0, pattern, _SCANNED)
        cursor, names = found
        if names:
            yield [name.decode() for name in names]


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _saved(keys: Keys, entry_id: str, fields: Fields, *, archived: bool) -> bytes:
    """An event as in an export; as its bare fields where it cannot be read."""
    try:
        entry = LogEntry(Position.at(keys.partition, entry_id), from_fields(fields))
        return event_line(entry, archived=archived)
    except (SchemaError, ValueError):
        bare = {_text(name): _text(value) for name, value in fields.items()}
        line = {"position": f"{keys.partition}:{entry_id}", "archived": archived, "fields": bare}
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
