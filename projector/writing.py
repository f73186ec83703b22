"""Writes rows and events: whole batches in one statement each, past SQLAlchemy where it is hot."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import asyncpg
from sqlalchemy import select
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore import LogEntry
from eventstore.tables import events_table
from projector.folding import Parked, Rows
from projector.projection import Merge, Projection, Row
from projector.tables import checkpoints, parked, projections_table
from schemas import Position

PUBLIC = "public"
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


async def driver(connection: AsyncConnection) -> "asyncpg.Connection[asyncpg.Record]":
    """The driver's connection. SQLAlchemy's transaction on it began with its first statement."""
    raw = await connection.get_raw_connection()
    assert raw.driver_connection is not None  # noqa: S101 - it is connected
    return cast("asyncpg.Connection[asyncpg.Record]", raw.driver_connection)


async def write_rows(connection: AsyncConnection, rows: Rows, schema: str = PUBLIC) -> None:
    """Write the rows of each projection over those that are there, all in one statement."""
    some = tuple(projection for projection, of_one in rows.items() if of_one)
    if some:
        to = await driver(connection)
        arrays = [column for one in some for column in _columns(one, rows[one].values())]
        await to.execute(_upserts(some, schema), *arrays)


async def copy_rows(
    connection: AsyncConnection, projection: Projection, rows: Sequence[Sequence[Any]], schema: str
) -> None:
    """Copy rows, as tuples, that are not there."""
    to = await driver(connection)
    await to.copy_records_to_table(
        projection.name, schema_name=schema, columns=list(projection.columns), records=rows
    )


def _columns(projection: Projection, rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    return list(zip(*map(projection.values_of, rows), strict=True))


@cache
def _upserts(projections: tuple[Projection, ...], schema: str) -> str:
    """Every table's upsert but the last as a common table expression of the last one.

    Foreign keys are looked at when the whole statement has been carried out.
    """
    upserts: list[str] = []
    first = 1
    for one in projections:
        upserts.append(_upsert(one, schema, first))
        first += len(one.columns)
    *others, last = upserts
    named = [f"upsert_{number} AS ({upsert})" for number, upsert in enumerate(others)]
    return f"WITH {', '.join(named)} {last}" if named else last


def _upsert(projection: Projection, schema: str, first: int) -> str:
    """The upsert of rows that come as an array for each column, from parameter `first` on."""
    name = projection.name
    schema = projection.table.schema or schema
    columns = ", ".join(projection.columns)
    arrays = ", ".join(
        f"${number}::{column.type.compile(_DIALECT)}[]"
        for number, column in enumerate(projection.table.columns, start=first)
    )
    changes = ", ".join(
        f"{column} = " + projection.merge.get(column, Merge.REPLACE).value.format(column, name)
        for column in projection.columns
        if column not in projection.key
    )
    return (
        f"INSERT INTO {schema}.{name} ({columns}) SELECT * FROM unnest({arrays}) "  # noqa: S608
        f"ON CONFLICT ({', '.join(projection.key)}) DO UPDATE SET {changes}"
    )


_ARCHIVED = [column.name for column in events_table.columns]


async def copy_events(connection: AsyncConnection, entries: Iterable[LogEntry]) -> None:
    """Copy events into the archive, in this connection's transaction."""
    to = await driver(connection)
    await to.copy_records_to_table(
        events_table.name,
        schema_name=events_table.schema,
        columns=_ARCHIVED,
        records=[
            (
                position.partition,
                position.epoch,
                position.seq,
                # All of an event but its payload's decoded form, in the order of the table.
                *event[:-1],
            )
            for position, event in entries
        ],
    )


async def checkpoints_of(
    connection: AsyncConnection, schema: str = PUBLIC
) -> Mapping[int, Position]:
    """Up to where each partition is folded."""
    found = await (await driver(connection)).fetch(
        f"SELECT partition, epoch, seq FROM {schema}.{checkpoints.name}"  # noqa: S608
    )
    return {row["partition"]: Position(*row) for row in found}


_CHECKPOINTS = Projection(checkpoints)


def checkpoint_rows(ends: Iterable[Position]) -> Rows:
    """The rows that say: everything up to these positions of their partitions is folded."""
    return {_CHECKPOINTS: {(end.partition,): end._asdict() for end in ends}}


async def set_aside(connection: AsyncConnection, jobs: Sequence[Parked]) -> None:
    """Park jobs; one that is parked already stays as it is."""
    for job in jobs:
        await connection.execute(
            insert(parked)
            .values(
                job=job.job,
                tenant=job.tenant,
                partition=job.position.partition,
                epoch=job.position.epoch,
                seq=job.position.seq,
                version=job.version,
                type=job.type,
                error=job.error,
            )
            .on_conflict_do_nothing()
        )


async def jobs_aside(
    connection: AsyncConnection, partitions: Collection[int] | None = None
) -> dict[str, Position]:
    """The parked and the discarded jobs, and from which event on they are not folded."""
    query = select(parked.c.job, parked.c.partition, parked.c.epoch, parked.c.seq)
    if partitions is not None:
        query = query.where(parked.c.partition.in_(partitions))
    found = (await connection.execute(query)).all()
    return {row.job: Position(row.partition, row.epoch, row.seq) for row in found}


async def built(connection: AsyncConnection, known: Sequence[Projection]) -> list[Projection]:
    """Those of the projections whose rows were made by the fold that they have now."""
    return current(known, await versions_of(connection))


async def versions_of(connection: AsyncConnection) -> dict[str, int]:
    """By name of each projection, the version of the fold that its rows were made by."""
    found = (await connection.execute(select(projections_table))).all()
    return {row.name: row.version for row in found}


def current(known: Sequence[Projection], versions: Mapping[str, int]) -> list[Projection]:
    """Those of the projections whose rows are of these versions.

    One that refers to the rows of another is left out with it.
    """
    made = [one for one in known if versions.get(one.name) == one.version]
    tables = {one.table for one in made}
    return [one for one in made if {key.column.table for key in one.table.foreign_keys} <= tables]


async def mark_built(connection: AsyncConnection, projections: Sequence[Projection]) -> None:
    """The rows of these projections are what their folds say."""
    for one in projections:
        values = {"version": one.version}
        await connection.execute(
            insert(projections_table)
            .values(name=one.name, **values)
            .on_conflict_do_update(index_elements=[projections_table.c.name], set_=values)
        )
