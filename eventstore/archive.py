"""The archive: the log once more in Postgres, cold and for ever, and the register of partitions.

The tables stand in the schema `headrace`, which no rebuild of a read model ever touches. The
projector fills `events`; the log itself only reads them.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import anyio
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import UUID, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore.connection import postgres_errors
from schemas import Position, RecordedEvent, decode
from schemas.events import JobReady

SCHEMA = "headrace"
ASK_S = 5.0

metadata = MetaData(schema=SCHEMA)

events_table = Table(
    "events",
    metadata,
    Column("partition", Integer, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("id", UUID(as_uuid=False), nullable=False),
    Column("type", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("time", DateTime(timezone=True), nullable=False),
    Column("cause", Text, nullable=False),
    Column("trace", Text, nullable=False),
    # Exactly the bytes that were appended: jsonb would refuse some and rewrite others.
    Column("data", LargeBinary, nullable=False),
    Index("events_job_version", "job", "version", unique=True),
    # What a project's last build number is read from.
    Index("events_ready", "tenant", "project", postgresql_where=text("type = 'JobReady'")),
)

log_partitions_table = Table(
    "log_partitions",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("lineage", UUID(as_uuid=False), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    CheckConstraint("state in ('creating', 'open')", name="log_partitions_state"),
)


@dataclass(frozen=True, slots=True)
class Registration:
    """What Postgres knows of a partition's log; `state` is `creating` or `open`."""

    partition: int
    lineage: str
    epoch: int
    state: str


class Archive:
    """Reads of the archive, and the register of the log's partitions."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def read_job(self, tenant: str, job: str) -> list[RecordedEvent]:
        """The archived events of a job in order, maybe none. Raises `PostgresUnavailable`."""
        table = events_table
        query = (
            select(table)
            .where(table.c.job == job, table.c.tenant == tenant)
            .order_by(table.c.version)
        )
        async with self._asking() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [recorded(dict(row)) for row in rows]

    async def last_build(self, tenant: str, project: str) -> int:
        """The highest archived build number of a project, 0 when it has none."""
        table = events_table
        query = (
            select(table.c.data)
            .where(
                table.c.tenant == tenant,
                table.c.project == project,
                table.c.type == JobReady.type,
            )
        )  # fmt: skip
        async with self._asking() as connection:
            payloads = (await connection.execute(query)).scalars().all()
        return max(
            (JobReady.model_validate_json(data).build_number for data in payloads), default=0
        )

    async def last_event(self, partition: int) -> tuple[Position, str] | None:
        """Position and id of the newest archived event of a partition."""
        table = events_table
        query = (
            select(table.c.epoch, table.c.seq, table.c.id)
            .where(table.c.partition == partition)
            .order_by(table.c.epoch.desc(), table.c.seq.desc())
            .limit(1)
        )
        async with self._asking() as connection:
            row = (await connection.execute(query)).one_or_none()
        return (Position(partition, row.epoch, row.seq), row.id) if row else None

    async def registered(self) -> list[Registration]:
        """The partitions in order, as Postgres knows them; none before the log was made."""
        table = log_partitions_table
        async with self._asking() as connection:
            rows = await connection.execute(select(table).order_by(table.c.partition))
        return [Registration(*row) for row in rows]

    async def register(self, partitions: Sequence[Registration]) -> None:
        """Enter all partitions of a log, unless they are registered; all or none."""
        if not partitions:
            return
        with postgres_errors():
            async with self._engine.begin() as connection:
                await connection.execute(
                    insert(log_partitions_table).on_conflict_do_nothing(),
                    [asdict(registration) for registration in partitions],
                )

    async def mark_open(self, partition: int) -> None:
        """The partition's log is in Redis: from now on its absence is a loss."""
        table = log_partitions_table
        with postgres_errors():
            async with self._engine.begin() as connection:
                await connection.execute(
                    update(table).where(table.c.partition == partition).values(state="open")
                )

    async def count(self) -> int:
        """How many events are archived."""
        async with self._asking() as connection:
            query = select(func.count()).select_from(events_table)
            return (await connection.execute(query)).scalar_one()

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[AsyncConnection]:
        """A connection for a question that somebody waits for."""
        with postgres_errors(), anyio.fail_after(ASK_S):
            async with self._engine.connect() as connection:
                yield connection


def recorded(row: Mapping[str, Any]) -> RecordedEvent:
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
        payload=decode(row["type"], row["data"]),
    )
