"""Folds the log into the read model: a batch in one transaction, and all of it or nothing.

read the log behind the checkpoint          outside of any transaction
┌ lock the partition's row in fold_lock     SKIP LOCKED: another projector has it, come back
│ compare the checkpoint                    moved: drop what was read
│ fold, upsert all rows and the checkpoint
└ copy the events into the archive          commit

Small batches of several partitions share a transaction: it costs as much as a hundred events.

What cannot be folded parks its job, never its partition. A fold that fails is known before anything
is written. A row that cannot be made, or that only Postgres refuses (it keeps a constraint), is
found by doing the batch again, job by job under savepoints.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import anyio
import structlog
from asyncpg import PostgresError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    EventStore,
    Hub,
    LogEntry,
    PostgresUnavailable,
    RedisUnavailable,
    postgres_errors,
)
from eventstore.parts import make_parts
from projector.batches import BATCH_ERRORS, Batch, fold_batches, is_refusal, write_job_by_job
from projector.errors import (
    CheckpointMoved,
    FoldingStalled,
    LogBroken,
    LogForked,
    ModelNewer,
    ReplayRefused,
    RowRefused,
)
from projector.ground import check_rightful, make_locks, stand
from projector.numbers import last_build_rows
from projector.projection import Projection
from projector.projections import PROJECTIONS
from projector.replay import backfill
from projector.together import NotTogether, Together
from projector.writing import checkpoint_rows, checkpoints_of, copy_events, set_aside, write_rows
from schemas import Job, Position, decode_or_mark

FIRST_BATCH = 500
MOST = 2_000
BATCH_S = 30.0
LOOK_AGAIN_S = 1.0
LOOK_AT_OTHER_S = 0.05
STALLED_S = 60.0
MAX_STATES = 20_000
PARTS_EVERY_S = 12 * 3600.0
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
FIRST_BACKFILL_BACKOFF_S = 1.0
LONGEST_BACKFILL_BACKOFF_S = 900.0

log = structlog.get_logger()


class Projector:
    """Keeps the read model behind the log. Any number of them may run.

    `trouble` tells, by partition, what it waits for or stands still at.
    """

    def __init__(
        self,
        store: EventStore,
        engine: AsyncEngine,
        projections: Sequence[Projection] = PROJECTIONS,
        *,
        free_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`free_bytes`: the room on Postgres' disk, None where nobody can see it."""
        self._store = store
        self._engine = engine
        self._projections = projections
        self._free_bytes = free_bytes
        self._states = [_States() for _ in range(store.partitions)]
        self._batch = [FIRST_BATCH] * store.partitions
        # So many that those of all partitions are no more than one of the largest batches.
        self._small = min(FIRST_BATCH - 1, MOST // store.partitions)
        self._together = Together(self._fold_together)
        self.trouble: dict[int, str] = {}

    async def run(self, hub: Hub) -> None:
        """Fold every partition, each woken by its own bell, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_tables)
            for partition in range(self._store.partitions):
                tasks.start_soon(self._run_partition, partition, hub)

    async def catch_up(self) -> int:
        """Return once all that is in the log now is folded; how many events this projector folded.

        Raises `FoldingStalled` when another projector has a partition and does not go on, and what
        `fold_batch` raises.
        """
        return sum([await self.fold_up(number) for number in range(self._store.partitions)])

    async def fold_up(self, partition: int) -> int:
        """`catch_up` of one partition."""
        end = await self._store.log_end(partition)
        total, reached, since = 0, -1, anyio.current_time()
        while True:
            while folded := await self.fold_batch(partition):
                total += folded
            # None may be left, or another projector be at them.
            checkpoint = await self._checkpoint(partition)
            at = checkpoint.seq if checkpoint else 0
            if at >= end.seq:
                return total
            if at != reached:
                reached, since = at, anyio.current_time()
            elif anyio.current_time() - since > STALLED_S:
                raise FoldingStalled(partition, at)
            await anyio.sleep(LOOK_AT_OTHER_S)

    async def _keep_tables(self) -> None:
        """Backfill new projections, and keep parts of the archive ready for the months to come."""
        backoff_s = FIRST_BACKFILL_BACKOFF_S
        while True:
            try:
                await make_parts(self._engine)
                if names := await backfill(self._engine, free_bytes=self._free_bytes()):
                    log.info("projections_backfilled", names=names)
                backoff_s = FIRST_BACKFILL_BACKOFF_S
                await anyio.sleep(PARTS_EVERY_S)
                continue
            except (PostgresUnavailable, ReplayRefused, ModelNewer, TimeoutError) as error:
                log.warning("backfill_waits", error=str(error), again_in_s=backoff_s)
            except (SQLAlchemyError, PostgresError) as error:
                # Projecting goes on without: months are made ahead, and the rest is left out.
                log.error("tables_stuck", exc_info=error, again_in_s=backoff_s)
            # Each try may have folded the whole archive.
            await anyio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LONGEST_BACKFILL_BACKOFF_S)

    async def _run_partition(self, partition: int, hub: Hub) -> None:
        backoff_s = _FIRST_BACKOFF_S
        rung = False
        with hub.listen_events(partition) as waker:
            while True:
                asked = self._batch[partition]
                try:
                    # Shielded: a batch takes milliseconds, and is not cut in the middle to stop.
                    with anyio.fail_after(BATCH_S, shield=True):
                        folded = await self._fold_or_ask_again(partition, rung=rung)
                    backoff_s = _FIRST_BACKOFF_S
                    self.trouble.pop(partition, None)
                except (PostgresUnavailable, RedisUnavailable, TimeoutError) as error:
                    self._batch[partition] = FIRST_BATCH  # it may have been too much at once
                    log.warning("projector_waits", partition=partition, error=str(error))
                    self.trouble[partition] = str(error) or "a batch took too long"
                    await anyio.sleep(backoff_s)
                    backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)
                    continue
                except BATCH_ERRORS as error:
                    # This partition stands still until somebody looks; the others go on.
                    log.error("projector_stuck", partition=partition, exc_info=error)
                    self.trouble[partition] = f"stuck: {error}"
                    await anyio.sleep(_LONGEST_BACKOFF_S)
                    continue
                # There was no more: whatever has come since has rung, or will.
                if folded < asked:
                    rung = await waker.wait(LOOK_AGAIN_S)

    async def _fold_or_ask_again(self, partition: int, *, rung: bool) -> int:
        try:
            return await self.fold_batch(partition, rung=rung)
        except LogForked:
            # Connections to a server that was superseded may live on: each is looked at anew.
            verification = self._store.verification
            await verification.renew(verification.server)
            raise

    async def fold_batch(self, partition: int, *, rung: bool = False) -> int:
        """Fold the next events of a partition; how many, 0 when there are none or another does it.

        That there are none is held against the log's end and the checkpoint, unless a bell `rung`:
        in the midst of many it may ring for what was folded already. Raises `LogBroken`,
        `LogForked`, `PostgresUnavailable`, `RedisUnavailable`; nothing moved then.
        """
        remembered = self._states[partition].position
        behind = remembered or await self._checkpoint(partition)
        try:
            async with self._together.turn() as turn:
                entries = await self._next(partition, behind, rung=rung)
                if 0 < len(entries) <= self._small:
                    batch = Batch(behind, entries, self._states[partition].taken(behind))
                    with suppress(NotTogether):
                        return self._settle(batch, folded=await turn.fold(batch))
        except LogBroken:
            if remembered is None:
                raise
            # Another projector has gone on since, and what it folded is trimmed.
            self._states[partition].forget()
            return await self.fold_batch(partition)
        if entries:
            batch = Batch(behind, entries, self._states[partition].taken(behind))
            return self._settle(batch, folded=await self._fold_alone(batch))
        if not rung and remembered is not None and await self._checkpoint(partition) != remembered:
            # Postgres was set back: the log may reach further back than what it has now.
            self._states[partition].forget()
            return await self.fold_batch(partition)
        return 0

    async def _fold_together(self, batches: Sequence[Batch]) -> Collection[Batch]:
        """Fold small batches; those that no other projector was faster with."""
        if len(batches) == 1:
            return batches if await self._fold_alone(batches[0]) else []
        return await self._fold(batches)

    async def _fold_alone(self, batch: Batch) -> bool:
        """Fold a batch in its own transaction; False when another projector was faster."""
        try:
            return bool(await self._fold([batch]))
        except (RowRefused, DBAPIError, PostgresError) as error:
            if not is_refusal(error):
                raise
        batch.states.clear()  # it moved them on as far as it came
        return bool(await self._fold([batch], job_by_job=True))

    def _settle(self, batch: Batch, *, folded: bool) -> int:
        """Go on behind a batch if it was folded; how many events that were."""
        if not folded:
            return 0
        self._states[batch.partition].keep(batch.states, batch.end)
        self._adapt(batch.partition, len(batch.entries))
        return len(batch.entries)

    async def _checkpoint(self, partition: int) -> Position | None:
        with postgres_errors():
            async with self._engine.begin() as connection:
                await make_locks(connection, [partition])
                return (await checkpoints_of(connection)).get(partition)

    async def _next(self, partition: int, behind: Position | None, *, rung: bool) -> list[LogEntry]:
        """What comes behind the checkpoint. Raises `LogBroken` when that is not there any more."""
        entries = await self._read(partition, behind)
        if not entries and not rung:
            end = await self._store.log_end(partition)
            folded = behind.seq if behind else 0
            entries = await self._read(partition, behind)
            if not entries and end.seq != folded:
                raise LogBroken(partition, folded + 1, end.seq)
        _check_dense(behind, entries)
        return entries

    async def _read(self, partition: int, after: Position | None) -> list[LogEntry]:
        return await self._store.read_log(
            partition, after, count=self._batch[partition], decode=decode_or_mark
        )

    def _adapt(self, partition: int, folded: int) -> None:
        """Larger batches while there is more than fits into one: a commit costs what it costs."""
        size = self._batch[partition]
        self._batch[partition] = min(size * 2, MOST) if folded == size else FIRST_BATCH

    async def _fold(
        self, batches: Sequence[Batch], *, job_by_job: bool = False
    ) -> Collection[Batch]:
        """Fold batches of different partitions in one transaction; those that were.

        With the others another projector was faster.
        """
        try:
            with postgres_errors():
                async with self._engine.begin() as connection:
                    partitions = [batch.partition for batch in batches]
                    ground = await stand(connection, partitions, self._projections)
                    ours = [batch for batch in batches if ground.bears(batch)]
                    if not ours:
                        return ours
                    for batch in ours:
                        await check_rightful(connection, ground, batch)
                    entries = [entry for batch in ours for entry in batch.entries]
                    rows = last_build_rows(entries) | checkpoint_rows(one.end for one in ours)
                    folded = connection, ground.projections, ours, ground.aside
                    if job_by_job:
                        parked = await write_job_by_job(*folded)
                    else:
                        folding = await fold_batches(*folded)
                        rows, parked = folding.rows() | rows, folding.parked
                    await set_aside(connection, parked)
                    await write_rows(connection, rows)
                    await copy_events(connection, entries)
        except CheckpointMoved:
            return []
        aside = {one.job for one in parked}
        for batch in ours:
            for job in aside & batch.states.keys():
                del batch.states[job]  # a retry goes on with it elsewhere
        for one in parked:
            log.error(
                "job_parked",
                job=one.job,
                position=str(one.position),
                type=one.type,
                error=one.error,
            )
        return ours


class _States:
    """The newest states of a partition's jobs, as of the checkpoint that this projector left.

    They spare reading a job's events again for each batch that it has part in.
    """

    def __init__(self) -> None:
        self.position: Position | None = None
        self._states: dict[str, Job] = {}

    def forget(self) -> None:
        self._states, self.position = {}, None

    def taken(self, behind: Position | None) -> dict[str, Job]:
        """What is known as of this checkpoint; it is gone from here until it is kept again."""
        states = self._states if self.position == behind else {}
        self.forget()
        return states

    def keep(self, states: dict[str, Job], position: Position) -> None:
        for job in [job for job, state in states.items() if state.is_terminal]:
            del states[job]
        while len(states) > MAX_STATES:
            del states[next(iter(states))]
        self._states, self.position = states, position


def _check_dense(behind: Position | None, entries: Sequence[LogEntry]) -> None:
    """Positions count on without a hole, over epochs too: what is not there was lost."""
    expected = behind.seq + 1 if behind else 1
    for offset, entry in enumerate(entries):
        if entry.position.seq != expected + offset:
            raise LogBroken(entry.position.partition, expected + offset, entry.position.seq)
