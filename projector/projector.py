"""Folds the log into the read model: per batch one transaction, and all of it or nothing.

read the log behind the checkpoint          outside of any transaction
┌ lock the partition's row in fold_lock     SKIP LOCKED: another projector has it, come back
│ compare the checkpoint                    moved: drop what was read
│ copy the events into the archive
│ fold, upsert jobs
└ move the checkpoint                       commit
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import anyio
import structlog
from asyncpg import PostgresError
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import (
    EventStore,
    EventStoreError,
    Hub,
    LogEntry,
    PostgresUnavailable,
    RedisUnavailable,
    postgres_errors,
)
from eventstore.archive import recorded
from eventstore.register import shared
from eventstore.tables import events_table
from projector.errors import CheckpointMoved, LogBroken, LogForked, ProjectorError
from projector.fold import advance, row
from projector.tables import checkpoints, fold_lock, jobs
from schemas import Job, Position, SchemaError

BATCH = 500
BATCH_S = 30.0
LOOK_AGAIN_S = 1.0
# A frozen projector loses its transaction, and with it the locks; what is folded is on the disk
# before the log is trimmed behind it.
_SETTINGS = (
    f"SELECT set_config('idle_in_transaction_session_timeout', '{BATCH_S + 5:.0f}s', true), "
    "set_config('synchronous_commit', 'on', true)"
)
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0

log = structlog.get_logger()


class Projector:
    """Keeps the read model behind the log. Any number of them may run."""

    def __init__(self, store: EventStore, engine: AsyncEngine) -> None:
        self._store = store
        self._engine = engine

    async def run(self, hub: Hub) -> None:
        """Fold every partition, each woken by its own bell, until cancelled."""
        async with anyio.create_task_group() as tasks:
            for partition in range(self._store.partitions):
                tasks.start_soon(self._run_partition, partition, hub)

    async def catch_up(self) -> int:
        """Fold what is in the log now; the number of events folded."""
        total = 0
        for partition in range(self._store.partitions):
            while folded := await self.fold_batch(partition):
                total += folded
        return total

    async def _run_partition(self, partition: int, hub: Hub) -> None:
        backoff_s = _FIRST_BACKOFF_S
        with hub.listen_events(partition) as waker:
            while True:
                try:
                    # Shielded: a batch takes milliseconds, and is not cut in the middle to stop.
                    with anyio.fail_after(BATCH_S, shield=True):
                        folded = await self.fold_batch(partition)
                    backoff_s = _FIRST_BACKOFF_S
                except (PostgresUnavailable, RedisUnavailable, TimeoutError) as error:
                    log.warning("projector_waits", partition=partition, error=str(error))
                    await anyio.sleep(backoff_s)
                    backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)
                    continue
                except (
                    EventStoreError,
                    ProjectorError,
                    SchemaError,
                    SQLAlchemyError,
                    PostgresError,
                ) as error:
                    # This partition stands still until somebody looks; the others go on.
                    log.error("projector_stuck", partition=partition, exc_info=error)
                    await anyio.sleep(_LONGEST_BACKOFF_S)
                    continue
                if not folded:
                    await waker.wait(LOOK_AGAIN_S)

    async def fold_batch(self, partition: int) -> int:
        """Fold the next events of a partition; how many, 0 when there are none or another does it.

        Raises `HistoryBroken`, `LogBroken`, `LogForked`, `UndecodableEvent`, `PostgresUnavailable`,
        `RedisUnavailable`; nothing moved then.
        """
        with postgres_errors():
            async with self._engine.connect() as connection:
                checkpoint = await _checkpoint(connection, partition)
        entries = await self._store.read_log(partition, checkpoint, count=BATCH)
        if not entries:
            end = await self._store.log_end(partition)
            folded = checkpoint.seq if checkpoint else 0
            entries = await self._store.read_log(partition, checkpoint, count=BATCH)
            if not entries and end.seq != folded:
                raise LogBroken(partition, folded + 1, end.seq)
            if not entries:
                return 0
        _check_dense(checkpoint, entries)
        try:
            with postgres_errors():
                async with self._engine.begin() as connection:
                    await connection.execute(text(_SETTINGS))
                    if not await _lock(connection, partition):
                        return 0
                    await self._fold(connection, partition, checkpoint, entries)
        except CheckpointMoved:
            return 0
        return len(entries)

    async def _fold(
        self,
        connection: AsyncConnection,
        partition: int,
        checkpoint: Position | None,
        entries: Sequence[LogEntry],
    ) -> None:
        if await _checkpoint(connection, partition) != checkpoint:
            raise CheckpointMoved
        await _check_rightful(connection, entries)
        states: dict[str, Job | None] = defaultdict(lambda: None)
        states.update(await _archived_states(connection, {entry.event.job for entry in entries}))
        rows: dict[str, dict[str, Any]] = {}
        for entry in entries:
            state = advance(states[entry.event.job], entry.event)
            states[entry.event.job] = state
            rows[state.job] = row(state, entry.position)
        await copy_events(connection, entries)
        await _upsert_jobs(connection, list(rows.values()))
        await _move_checkpoint(connection, entries[-1].position)


def _check_dense(checkpoint: Position | None, entries: Sequence[LogEntry]) -> None:
    """Positions count on without a hole, over epochs too: what is not there was lost."""
    expected = checkpoint.seq + 1 if checkpoint else 1
    for offset, entry in enumerate(entries):
        if entry.position.seq != expected + offset:
            raise LogBroken(entry.position.partition, expected + offset, entry.position.seq)


async def _check_rightful(connection: AsyncConnection, entries: Sequence[LogEntry]) -> None:
    """What a server appends that was superseded meanwhile is never archived.

    The register's entry stays locked until this batch is committed, so that nobody begins an epoch
    before these events who has not seen them.
    """
    registration = await shared(connection, entries[0].position.partition)
    for entry in entries:
        if not registration.rightful(entry.position):
            raise LogForked(entry.position)


async def _lock(connection: AsyncConnection, partition: int) -> bool:
    await connection.execute(insert(fold_lock).values(partition=partition).on_conflict_do_nothing())
    query = (
        select(fold_lock.c.partition)
        .where(fold_lock.c.partition == partition)
        .with_for_update(skip_locked=True)
    )
    return (await connection.execute(query)).one_or_none() is not None


async def _checkpoint(connection: AsyncConnection, partition: int) -> Position | None:
    query = select(checkpoints).where(checkpoints.c.partition == partition)
    found = (await connection.execute(query)).one_or_none()
    return Position(found.partition, found.epoch, found.seq) if found else None


async def _archived_states(connection: AsyncConnection, wanted: set[str]) -> dict[str, Job]:
    """The jobs' states as of the archive: thirty events at most, so no snapshot is kept."""
    table = events_table
    query = select(table).where(table.c.job.in_(wanted)).order_by(table.c.job, table.c.version)
    states: dict[str, Job] = {}
    for found in (await connection.execute(query)).mappings():
        states[found["job"]] = advance(states.get(found["job"]), recorded(dict(found)))
    return states


async def copy_events(connection: AsyncConnection, entries: Sequence[LogEntry]) -> None:
    """Copy events into the archive, in this connection's transaction."""
    raw = await connection.get_raw_connection()
    assert raw.driver_connection is not None  # noqa: S101 - it is connected
    await raw.driver_connection.copy_records_to_table(
        events_table.name,
        schema_name=events_table.schema,
        columns=[column.name for column in events_table.columns],
        records=[
            (
                entry.position.partition,
                entry.position.epoch,
                entry.position.seq,
                entry.event.id,
                entry.event.type,
                entry.event.tenant,
                entry.event.project,
                entry.event.job,
                entry.event.version,
                entry.event.time,
                entry.event.cause,
                entry.event.trace,
                entry.event.data,
            )
            for entry in entries
        ],
    )


async def _upsert_jobs(connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    statement = insert(jobs)
    changed = {column.name: statement.excluded[column.name] for column in jobs.columns}
    await connection.execute(
        statement.on_conflict_do_update(index_elements=[jobs.c.id], set_=changed), rows
    )


async def _move_checkpoint(connection: AsyncConnection, position: Position) -> None:
    values = {"epoch": position.epoch, "seq": position.seq}
    await connection.execute(
        insert(checkpoints)
        .values(partition=position.partition, **values)
        .on_conflict_do_update(index_elements=[checkpoints.c.partition], set_=values)
    )
