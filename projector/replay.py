"""Proving and remaking the read model from the archive.

Both read the archive once, job by job: a job's events stand together, so memory stays flat however
many jobs there are; only `verify` holds the live rows beside it.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import postgres_errors
from eventstore.archive import recorded
from eventstore.tables import events_table, log_partitions_table
from projector.fold import advance, row
from projector.tables import checkpoints, fold_lock, jobs, metadata
from schemas import Job, Position

SHADOW = "headrace_rebuild"
_BATCH = 1_000

OnProgress = Callable[[int, int], None]
"""Called with (events folded, events in all)."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where the live read model is not what its events say."""

    job: str
    column: str
    live: Any
    folded: Any
    position: str | None

    def __str__(self) -> str:
        at = f" (last event at {self.position})" if self.position else ""
        return f"job {self.job}: {self.column} is {self.live!r}, its events say {self.folded!r}{at}"


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay went through."""

    events: int
    jobs: int


async def rebuild(engine: AsyncEngine, *, on_progress: OnProgress | None = None) -> Replayed:
    """Fold the whole archive into fresh tables and put them in place of the live ones.

    One transaction: killed anywhere, it leaves nothing behind. Readers go on undisturbed until the
    swap at its end; projectors wait, for they and the swap take the same locks.
    """
    with postgres_errors():
        await _make_locks(engine)
        async with engine.begin() as connection:
            locks = select(fold_lock).order_by(fold_lock.c.partition)
            await connection.execute(locks.with_for_update())
            await connection.execute(text(f"CREATE SCHEMA {SHADOW}"))
            shadow = await connection.execution_options(schema_translate_map={None: SHADOW})
            await shadow.run_sync(metadata.create_all)
            replayed = await _fold_into(shadow, on_progress)
            await _fold_checkpoints(shadow)
            for table in metadata.sorted_tables:
                await connection.execute(text(f"DROP TABLE public.{table.name}"))
                await connection.execute(
                    text(f"ALTER TABLE {SHADOW}.{table.name} SET SCHEMA public")
                )
            await connection.execute(text(f"DROP SCHEMA {SHADOW}"))
    return replayed


async def verify(
    engine: AsyncEngine, *, on_progress: OnProgress | None = None
) -> tuple[Replayed, list[Difference]]:
    """Compare the live read model with what the archive folds to, in one snapshot.

    Returns what was compared and every difference found, at most a thousand.
    """
    differences: list[Difference] = []
    with postgres_errors():
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            # Before the snapshot is taken and in the order of a rebuild: its swap comes either
            # before all that is read here, or after.
            tables = ", ".join(f"public.{table.name}" for table in metadata.sorted_tables)
            await connection.execute(text(f"LOCK TABLE {tables} IN ACCESS SHARE MODE"))
            total = await _count(connection)
            live = await _live_rows(connection)
            seen = 0
            folded = 0
            async for job, position, events in _folded_jobs(connection):
                seen, folded = seen + events, folded + 1
                expected = row(job, position)
                differences += _compare(live.pop(job.job, None), expected)
                if on_progress:
                    on_progress(seen, total)
            differences += [
                Difference(job, "row", "there", "no such job", None) for job in sorted(live)
            ]
            differences += await _compare_checkpoints(connection)
    return Replayed(seen, folded), differences[:1_000]


async def _make_locks(engine: AsyncEngine) -> None:
    """Rows to lock also for partitions that no projector has locked so far.

    Without them the first batch of such a partition would be folded beside a rebuild, into the
    tables that it drops. Committed at once, so that projectors skip these locks instead of waiting.
    """
    partitions = select(log_partitions_table.c.partition)
    async with engine.begin() as connection:
        await connection.execute(
            insert(fold_lock).from_select(["partition"], partitions).on_conflict_do_nothing()
        )


def _compare(live: dict[str, Any] | None, expected: dict[str, Any]) -> list[Difference]:
    job, position = expected["id"], expected["position"]
    if live is None:
        return [Difference(job, "row", "missing", "there", position)]
    return [
        Difference(job, column, live[column], value, position)
        for column, value in expected.items()
        if live[column] != value
    ]


async def _fold_into(connection: AsyncConnection, on_progress: OnProgress | None) -> Replayed:
    total, seen, folded = await _count(connection), 0, 0
    rows: list[dict[str, Any]] = []
    async for job, position, events in _folded_jobs(connection):
        seen, folded = seen + events, folded + 1
        rows.append(row(job, position))
        if len(rows) == _BATCH:
            await connection.execute(insert(jobs), rows)
            rows.clear()
        if on_progress:
            on_progress(seen, total)
    if rows:
        await connection.execute(insert(jobs), rows)
    return Replayed(seen, folded)


async def _fold_checkpoints(connection: AsyncConnection) -> None:
    ends = await _archive_ends(connection)
    if ends:
        await connection.execute(
            insert(checkpoints),
            [{"partition": p.partition, "epoch": p.epoch, "seq": p.seq} for p in ends],
        )


async def _compare_checkpoints(connection: AsyncConnection) -> list[Difference]:
    found = (await connection.execute(select(checkpoints))).all()
    live = {row.partition: Position(row.partition, row.epoch, row.seq) for row in found}
    ends = {end.partition: end for end in await _archive_ends(connection)}
    return [
        Difference(
            "-", f"checkpoint of partition {number}", live.get(number), ends.get(number), None
        )
        for number in sorted(live.keys() | ends.keys())
        if live.get(number) != ends.get(number)
    ]


async def _archive_ends(connection: AsyncConnection) -> Sequence[Position]:
    """The newest archived position of each partition."""
    table = events_table
    query = (
        select(table.c.partition, table.c.epoch, table.c.seq)
        .ext(distinct_on(table.c.partition))
        .order_by(table.c.partition, table.c.epoch.desc(), table.c.seq.desc())
    )
    return [Position(*found) for found in (await connection.execute(query)).all()]


async def _folded_jobs(connection: AsyncConnection) -> AsyncIterator[tuple[Job, Position, int]]:
    """Every archived job: its state, its last position, the number of its events."""
    table = events_table
    query = select(table).order_by(table.c.job, table.c.version)
    job: Job | None = None
    position = Position(0, 0, 0)
    async with _streamed(connection, query) as rows:
        async for found in rows:
            event = recorded(found)
            if job is not None and event.job != job.job:
                yield job, position, job.version
                job = None
            job = advance(job, event)
            position = Position(found["partition"], found["epoch"], found["seq"])
    if job is not None:
        yield job, position, job.version


@asynccontextmanager
async def _streamed(
    connection: AsyncConnection, query: Any
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    result = await connection.stream(query, execution_options={"yield_per": _BATCH})

    async def rows() -> AsyncIterator[dict[str, Any]]:
        async for found in result.mappings():
            yield dict(found)

    try:
        yield rows()
    finally:
        await result.close()


async def _live_rows(connection: AsyncConnection) -> dict[str, dict[str, Any]]:
    found = (await connection.execute(select(jobs))).mappings()
    return {columns["id"]: dict(columns) for columns in found}


async def _count(connection: AsyncConnection) -> int:
    query = select(func.count()).select_from(events_table)
    return (await connection.execute(query)).scalar_one()
