"""Reads of the archive: the log once more in Postgres, cold and for ever."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore.connection import asking
from eventstore.entries import LogEntry
from eventstore.register import Register
from eventstore.tables import events_table, last_builds_table
from schemas import Position, RecordedEvent, decode
from schemas.envelope import Decode

_NEWEST = text("""
SELECT asked.partition, newest.epoch, newest.seq, newest.id::text
FROM unnest(CAST(:partitions AS integer[])) AS asked (partition)
CROSS JOIN LATERAL (
  SELECT epoch, seq, id FROM headrace.events WHERE partition = asked.partition
  ORDER BY epoch DESC, seq DESC LIMIT :count
) AS newest
ORDER BY asked.partition, newest.epoch, newest.seq
""")

Archived = list[tuple[Position, str]]
"""Where archived events of a partition stand, and their ids, in order."""


class Archive:
    """The archived events, and beside them the register of the log's partitions."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.register = Register(engine)
        self._engine = engine

    async def read_job(
        self, tenant: str, job: str, *, decode: Decode | None = None
    ) -> list[RecordedEvent]:
        """The archived events of a job in order, maybe none. Raises `PostgresUnavailable`."""
        table = events_table
        found = await self._rows(
            select(table)
            .where(table.c.job == job, table.c.tenant == tenant)
            .order_by(table.c.epoch, table.c.seq)
        )
        return [recorded(row._asdict(), decode) for row in found]

    async def newest_of_job(self, tenant: str, job: str) -> LogEntry | None:
        """The newest archived event of a job."""
        table = events_table
        found = await self._rows(
            select(table)
            .where(table.c.job == job, table.c.tenant == tenant)
            .order_by(table.c.epoch.desc(), table.c.seq.desc())
            .limit(1)
        )
        return _entry(found[0]) if found else None

    async def read_log(
        self, partition: int, after: Position | None, *, count: int
    ) -> list[LogEntry]:
        """Up to `count` archived events of a partition behind `after`, in order."""
        table = events_table
        query = (
            select(table)
            .where(table.c.partition == partition)
            .order_by(table.c.epoch, table.c.seq)
            .limit(count)
        )
        if after is not None:
            query = query.where(_key() > func.row(after.epoch, after.seq))
        return [_entry(row) for row in await self._rows(query)]

    async def tail(self, partition: int, count: int) -> list[LogEntry]:
        """The newest `count` archived events of a partition, in order."""
        table = events_table
        found = await self._rows(
            select(table)
            .where(table.c.partition == partition)
            .order_by(table.c.epoch.desc(), table.c.seq.desc())
            .limit(count)
        )
        return [_entry(row) for row in reversed(found)]

    async def newest_ids(self, partition: int, count: int) -> Archived:
        """The newest `count` archived events of a partition.

        Decodes nothing, so it is told also of events that only a newer version can read.
        """
        async with asking(self._engine) as connection:
            return (await newest_ids(connection, [partition], count))[partition]

    async def end(self, partition: int) -> Position | None:
        """The position of the newest archived event of a partition."""
        newest = await self.newest_ids(partition, 1)
        return newest[0][0] if newest else None

    async def last_build(self, tenant: str, project: str) -> int:
        """The number of a project's newest archived build, 0 when it has none.

        Also of one whose events are in a part that was detached since.
        """
        table = last_builds_table
        found = await self._rows(
            select(table.c.number).where(table.c.tenant == tenant, table.c.project == project)
        )
        return int(found[0].number) if found else 0

    async def count(self) -> int:
        """How many events are archived."""
        (row,) = await self._rows(select(func.count().label("events")).select_from(events_table))
        return int(row.events)

    async def _rows(self, query: Select[Any]) -> list[Row[Any]]:
        async with asking(self._engine) as connection:
            return list((await connection.execute(query)).all())


async def newest_ids(
    connection: AsyncConnection, partitions: Sequence[int], count: int
) -> dict[int, Archived]:
    """What `Archive.newest_ids` gives, of each of these partitions; one trip."""
    found: dict[int, Archived] = {number: [] for number in partitions}
    rows = await connection.execute(_NEWEST, {"partitions": list(partitions), "count": count})
    for number, epoch, seq, event_id in rows:
        found[number].append((Position(number, epoch, seq), event_id))
    return found


def recorded(row: Mapping[str, Any], decoding: Decode | None = None) -> RecordedEvent:
    """The event in a row of `events`."""
    return RecordedEvent(
        id=row["id"],
        type=row["type"],
        tenant=row["tenant"],
        project=row["project"],
        job=row["job"],
        version=row["version"],
        time=row["time"],
        cause=row["cause"],
        trace=row["trace"],
        data=row["data"],
        payload=(decoding or decode)(row["type"], row["data"]),
    )


def _key() -> Any:
    return func.row(events_table.c.epoch, events_table.c.seq)


def _entry(row: Row[Any]) -> LogEntry:
    return LogEntry(Position(row.partition, row.epoch, row.seq), recorded(row._asdict()))
