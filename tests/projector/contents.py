"""What stands in the database, and what the log says should stand there."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore, LogEntry
from eventstore.tables import events_table
from projector.folding import fold_entries
from projector.projections import PROJECTIONS
from projector.tables import checkpoints, parked
from schemas import Position, decode_or_mark

Rows = list[dict[str, Any]]


TABLES = (*[projection.table for projection in PROJECTIONS], checkpoints, parked, events_table)
EMPTY: dict[str, Rows] = {table.name: [] for table in TABLES}


READ_MODEL = ", ".join([*[projection.name for projection in PROJECTIONS], checkpoints.name])
"""The names of its tables, as TRUNCATE takes them."""


async def contents(engine: AsyncEngine) -> dict[str, Rows]:
    """Every row of the read model and the archive: equal before and after means nothing moved."""
    async with engine.connect() as connection:
        return {
            table.name: [
                dict(found)
                for found in (
                    await connection.execute(
                        select(table)
                        .with_only_columns(*[c for c in table.columns if c.name != "parked_at"])
                        .order_by(*table.primary_key)
                    )
                ).mappings()
            ]
            for table in TABLES
        }


async def whole_log(store: EventStore) -> list[LogEntry]:
    """Every entry of every partition."""
    entries: list[LogEntry] = []
    for partition in range(store.partitions):
        end: Position | None = None
        while batch := await store.read_log(partition, end, decode=decode_or_mark):
            entries += batch
            end = batch[-1].position
    return entries


async def folded(
    store: EventStore, aside: Mapping[str, Position] = MappingProxyType({})
) -> dict[str, Rows]:
    """The contents as they follow from the log by one plain fold.

    Nothing is parked but the jobs in `aside`, from these positions on; they are not in `parked`.
    """
    entries = await whole_log(store)
    folding = fold_entries(PROJECTIONS, entries, {}, aside)
    assert not folding.parked
    ends = {entry.position.partition: entry.position for entry in entries}
    return {
        **{
            projection.name: [
                {name: rows[key][name] for name in projection.columns} for key in sorted(rows)
            ]
            for projection, rows in folding.rows().items()
        },
        "checkpoints": [
            {"partition": end.partition, "epoch": end.epoch, "seq": end.seq}
            for _, end in sorted(ends.items())
        ],
        "parked": [],
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
