"""What stands in the database, and what the log says should stand there."""

from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore, LogEntry
from eventstore.tables import events_table
from projector.fold import row
from projector.tables import checkpoints, jobs
from schemas import Position, fold

Rows = list[dict[str, Any]]


async def contents(engine: AsyncEngine) -> dict[str, Rows]:
    """Every row of jobs, checkpoints and archive: equal before and after means nothing moved."""
    async with engine.connect() as connection:
        return {
            table.name: [
                dict(found)
                for found in (
                    await connection.execute(select(table).order_by(*table.primary_key))
                ).mappings()
            ]
            for table in (jobs, checkpoints, events_table)
        }


async def whole_log(store: EventStore) -> list[LogEntry]:
    """Every entry of every partition."""
    entries: list[LogEntry] = []
    for partition in range(store.partitions):
        end: Position | None = None
        while batch := await store.read_log(partition, end):
            entries += batch
            end = batch[-1].position
    return entries


async def folded(store: EventStore) -> dict[str, Rows]:
    """The contents as they follow from the log by a plain fold."""
    entries = await whole_log(store)
    histories: dict[str, list[LogEntry]] = {}
    for entry in entries:
        histories.setdefault(entry.event.job, []).append(entry)
    rows = []
    for _, history in sorted(histories.items()):
        job = fold(entry.event for entry in history)
        assert job is not None
        rows.append(row(job, history[-1].position))
    ends = {entry.position.partition: entry.position for entry in entries}
    return {
        "jobs": rows,
        "checkpoints": [
            {"partition": end.partition, "epoch": end.epoch, "seq": end.seq}
            for _, end in sorted(ends.items())
        ],
        "events": [_archived(entry) for entry in entries],
    }


def _archived(entry: LogEntry) -> dict[str, Any]:
    position, event = entry.position, entry.event
    return {
        "partition": position.partition,
        "epoch": position.epoch,
        "seq": position.seq,
        "id": event.id,
        "type": event.type,
        "tenant": event.tenant,
        "project": event.project,
        "job": event.job,
        "version": event.version,
        "time": event.time,
        "cause": event.cause,
        "trace": event.trace,
        "data": event.data,
    }


async def execute(engine: AsyncEngine, *statements: str) -> None:
    """Run SQL by hand, in one transaction."""
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def scalar(engine: AsyncEngine, query: str) -> Any:
    """The one value of a query."""
    async with engine.connect() as connection:
        return (await connection.execute(text(query))).scalar_one_or_none()
