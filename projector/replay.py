"""Remaking the read model from the archive, and proving that it needs no remaking.

    ┌ tables of the same shape in a schema of their own
    │ fold the archive into them, as one snapshot has it      share by share, in any order
    │ compare them with the live tables of that snapshot      so nothing that comes later disturbs
    │ fold what was archived since                            until little is left
    │ lock every partition's fold_lock, fold the rest         projectors wait, as for one another
    │ drop the live tables, put these in their place          readers wait for this alone
    └ commit

All of it is one transaction: killed anywhere, it leaves the live tables as they were, and nothing
else. A verification is the first three steps and a roll-back. A backfill is a rebuild of those
tables whose fold is new.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid6 import uuid7

from eventstore import connect_postgres, postgres_errors
from eventstore.tables import log_partitions_table
from projector.archived import whole_archive
from projector.comparing import Difference, compared, digests
from projector.errors import DiskTooSmall
from projector.ground import check_known, make_locks
from projector.parking import one_replay
from projector.projection import Projection
from projector.projections import PROJECTIONS
from projector.shadow import OnProgress, Shadow
from projector.shares import UNHURRIED, Source, on_snapshot, sample, shares
from projector.swapping import check_dependants, no_swap, swap
from projector.writing import PUBLIC, built, driver, jobs_aside

SHADOW = "headrace_rebuild"
REPLAY_S = 6 * 3600.0
# A row takes less than the events that lead to it; half as much again for what Postgres logs of it.
_ROOM = 1.5


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay went through. `differing`: tables that were not what their events say.

    `swap_wait_ms`: how long a reader that came at the worst moment waited.
    """

    events: int
    jobs: int
    parked: int = 0
    differing: tuple[str, ...] = ()
    swap_wait_ms: float = 0.0


def processes() -> int:
    """How many processes fold by default: one for each core that this one may use, four at most."""
    return min(len(os.sched_getaffinity(0)), 4)


async def rebuild(
    engine: AsyncEngine,
    *,
    on_progress: OnProgress | None = None,
    only: Sequence[Projection] = PROJECTIONS,
    workers: int = 1,
    free_bytes: int | None = None,
) -> Replayed:
    """Fold the whole archive into fresh tables and put them in place of the live ones.

    Readers and projectors go on meanwhile. With `free_bytes` of disk it refuses to begin when they
    are too few. Raises `ReplayRefused` and its kinds, `PostgresUnavailable`; nothing changed then.
    """
    only = _together(only)
    async with _patient(engine) as engine:
        partitions = await _partitions(engine)
        async with engine.connect() as seen, engine.begin() as connection:
            await one_replay(connection)
            await check_known(connection, PROJECTIONS)
            await _check_room(connection, only, free_bytes)
            await check_dependants(connection, only)
            shadow = Shadow(connection, SHADOW, only)
            await shadow.make()
            source = await _source(engine, seen)
            cut = await shares(seen)
            await shadow.fill(source, cut, workers=workers, on_progress=on_progress)
            live = await digests(seen, await built(seen, only), PUBLIC)
            remade = await digests(connection, only, SHADOW)
            await seen.rollback()  # from here on it would only keep Postgres from tidying up
            await shadow.index()
            wait_ms = await swap(shadow, partitions)
            parked = len(await jobs_aside(connection))
    differing = tuple(name for name, digest in live.items() if remade[name] != digest)
    return Replayed(shadow.events, shadow.jobs, parked, differing, wait_ms)


async def backfill(
    engine: AsyncEngine,
    *,
    on_progress: OnProgress | None = None,
    free_bytes: int | None = None,
) -> list[str]:
    """Fold the archive into the tables of new or changed projections; their names.

    Until then projectors leave these tables out. Raises what `rebuild` raises.
    """
    with postgres_errors():
        async with engine.begin() as connection:
            done = await built(connection, PROJECTIONS)
            await check_known(connection, PROJECTIONS)
    missing = [one for one in PROJECTIONS if one not in done]
    if missing:
        await rebuild(engine, only=missing, on_progress=on_progress, free_bytes=free_bytes)
    return [one.name for one in missing]


async def verify(
    engine: AsyncEngine,
    *,
    on_progress: OnProgress | None = None,
    workers: int = 1,
    jobs: int | None = None,
) -> tuple[Replayed, list[Difference]]:
    """Compare the live read model with what the archive folds to, in one snapshot.

    Returns what was compared and the differences, at most a thousand. With `jobs`, only so many
    jobs, taken at random, are folded; the tables that sum up are left out then.
    """
    # A swap comes before all that is read here, or after.
    async with _patient(engine) as engine, no_swap(engine), engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        source = await _source(engine, connection)
        live = await built(connection, PROJECTIONS)
        # Of a schema that is never committed only the name could be in another's way.
        shadow = Shadow(connection, f"headrace_verify_{uuid7().hex}", live)
        if jobs is None:
            chosen, cut = None, await shares(connection)
        else:
            shadow.projections = [projection for projection in live if projection.job]
            one = await sample(connection, jobs)
            chosen, cut = one.jobs, [one]
        await shadow.make()
        await shadow.fill(source, cut, workers=workers, on_progress=on_progress)
        differences = await compared(connection, shadow.projections, shadow.schema, jobs=chosen)
        differences += [
            Difference(
                "parked", (it.job,), "event", "folded", it.error, f"{it.type} at {it.position}"
            )
            for it in shadow.parked
        ]
        await connection.rollback()
    return Replayed(shadow.events, shadow.jobs, len(source.aside)), differences


async def _source(engine: AsyncEngine, seen: AsyncConnection) -> Source:
    """The archive as of now. Raises `ArchiveShort`."""
    snapshot = await on_snapshot(seen)
    return Source(engine, seen, snapshot, await whole_archive(seen), await jobs_aside(seen))


async def _partitions(engine: AsyncEngine) -> list[int]:
    """All partitions, each with a row to lock: committed, for a projector would wait for it."""
    async with engine.begin() as connection:
        table = log_partitions_table
        found = await connection.execute(table.select().order_by(table.c.partition))
        partitions = [row.partition for row in found]
        await make_locks(connection, partitions)
    return partitions


@asynccontextmanager
async def _patient(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """An engine of the same database whose statements may take hours."""
    url = engine.url.render_as_string(hide_password=False)
    patient = connect_postgres(url, pool_size=3, command_timeout_s=REPLAY_S, settings=UNHURRIED)
    try:
        with postgres_errors():
            yield patient
    finally:
        await patient.dispose()


def _together(projections: Sequence[Projection]) -> list[Projection]:
    """With a table those that refer to it or that it refers to: they are replaced together."""
    bound = {one.table for one in PROJECTIONS if one.table.foreign_keys}
    bound |= {key.column.table for table in bound for key in table.foreign_keys}
    tables = {one.table for one in projections}
    if tables & bound:
        tables |= bound
    return [one for one in PROJECTIONS if one.table in tables]


# --- what must be so before it begins ------------------------------------------------------------


async def _check_room(
    connection: AsyncConnection, projections: Sequence[Projection], free_bytes: int | None
) -> None:
    to = await driver(connection)
    sizes = [
        await to.fetchval("SELECT pg_total_relation_size($1::text::regclass)", f"public.{one.name}")
        for one in projections
    ]
    needed = round(sum(sizes) * _ROOM)
    if free_bytes is not None and free_bytes < needed:
        raise DiskTooSmall(needed, free_bytes)
