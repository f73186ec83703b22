"""Reads of the archive for folding."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from struct import Struct
from typing import Any, cast

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore import LogEntry
from eventstore.tables import events_table
from projector.errors import ArchiveShort, HistoryBroken
from projector.folding import advance
from projector.writing import checkpoints_of, driver
from schemas import Job, Position, RecordedEvent, SchemaError, decode_or_mark

EVENTS = f"{events_table.schema}.{events_table.name}"
# What a fold looks at. An event's id, cause and trace stay where they are.
FOLDED = "partition, epoch, seq, type, tenant, project, job, version, time, data"


def entry_of(row: asyncpg.Record) -> LogEntry:
    """The event in a row of `FOLDED` columns."""
    partition, epoch, seq, kind, tenant, project, job, version, time, data = row
    return LogEntry(
        Position(partition, epoch, seq),
        RecordedEvent(
            "", kind, tenant, project, job, version, time, "", "", data, decode_or_mark(kind, data)
        ),
    )


# A whole history is a row: taken apart here it costs a third of what a row an event does.
_HISTORIES = f"""
SELECT min(partition), min(tenant), min(project), job,
       array_agg(type ORDER BY epoch, seq), string_agg(time::text, ',' ORDER BY epoch, seq),
       string_agg(int8send(epoch) || int8send(seq) || int4send(version) || int4send(length(data)),
                  '' ORDER BY epoch, seq),
       string_agg(data, '' ORDER BY epoch, seq)
FROM {EVENTS}
"""  # noqa: S608
_NUMBERS = Struct("!qqii")
# Named tuples of a tuple: made by their names they take twice as long.
_entry = partial(cast("Callable[..., LogEntry]", tuple.__new__), LogEntry)
_event = partial(cast("Callable[..., RecordedEvent]", tuple.__new__), RecordedEvent)
_position = partial(cast("Callable[..., Position]", tuple.__new__), Position)


def history_of(row: asyncpg.Record) -> tuple[str, list[LogEntry]]:
    """A job and its events, in order."""
    partition, tenant, project, job, types, times, numbers, data = row
    end = 0
    return job, [
        _entry(
            (
                _position((partition, epoch, seq)),
                _event(
                    (
                        "",
                        kind,
                        tenant,
                        project,
                        job,
                        version,
                        datetime.fromisoformat(time),
                        "",
                        "",
                        payload := data[end : (end := end + size)],
                        decode_or_mark(kind, payload),
                    )
                ),
            )
        )
        for kind, time, (epoch, seq, version, size) in zip(
            types, times.split(","), _NUMBERS.iter_unpack(numbers), strict=True
        )
    ]


async def histories(
    connection: AsyncConnection, where: str, *args: Any
) -> "asyncpg.cursor.Cursor[asyncpg.Record]":
    """A cursor over the histories of these jobs, for `history_of`."""
    query = f"{_HISTORIES} WHERE {where} GROUP BY job ORDER BY job"
    return await (await driver(connection)).cursor(query, *args)


async def states_of(
    connection: AsyncConnection, wanted: Collection[str], *, upto: Position
) -> dict[str, Job]:
    """Jobs as their archived events up to a position of their partition tell them.

    Thirty events at most, so no snapshot is kept. One whose history is broken is left out: its next
    event will be found not to follow.
    """
    rows = await (await driver(connection)).fetch(
        f"SELECT {FOLDED} FROM {EVENTS} "  # noqa: S608
        "WHERE job = ANY($1) AND (epoch, seq) <= ($2, $3) ORDER BY job, epoch, seq",
        list(wanted),
        upto.epoch,
        upto.seq,
    )
    states: dict[str, Job] = {}
    broken: set[str] = set()
    for row in rows:
        event = entry_of(row).event
        if event.job not in broken:
            try:
                states[event.job] = advance(states.get(event.job), event)
            except (HistoryBroken, SchemaError):
                broken.add(event.job)
    return states


async def whole_archive(
    connection: AsyncConnection, partition: int | None = None
) -> dict[int, Position]:
    """Where the archive of each partition ends; nothing before it, or that was folded, is missing.

    Positions have no holes, over epochs too. With `partition`, of that one only. Raises
    `ArchiveShort`.
    """
    found = await (await driver(connection)).fetch(
        "SELECT partition, max(epoch) AS epoch, max(seq) AS seq, count(*) AS events "  # noqa: S608
        f"FROM {EVENTS} WHERE $1::integer IS NULL OR partition = $1 GROUP BY partition",
        partition,
    )
    ends = {row["partition"]: Position(row["partition"], row["epoch"], row["seq"]) for row in found}
    archived = {row["partition"]: row["events"] for row in found}
    folded = await checkpoints_of(connection)
    for position in (*ends.values(), *folded.values()):
        there = archived.get(position.partition, 0)
        if partition in (None, position.partition) and there < position.seq:
            raise ArchiveShort(position.partition, position.seq, there)
    return ends


async def entries_behind(
    connection: AsyncConnection, partition: int, after: Position | None, *, count: int
) -> Sequence[LogEntry]:
    """Up to `count` archived events of a partition behind `after`, in order."""
    rows = await (await driver(connection)).fetch(
        f"SELECT {FOLDED} FROM {EVENTS} WHERE partition = $1 AND (epoch, seq) > ($2, $3) "  # noqa: S608
        "ORDER BY epoch, seq LIMIT $4",
        partition,
        after.epoch if after else -1,
        after.seq if after else -1,
        count,
    )
    return [entry_of(row) for row in rows]
