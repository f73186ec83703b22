"""What batches stand on: the locks they hold, and what they find once they hold them.

Two statements whatever the number of tables and partitions, for small batches cost as much as their
statements. What the second reads nobody can change any more: the first took the locks. It waits for
none: whoever waited for one partition would keep all the others from everybody meanwhile.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore.register import registrations
from projector.batches import Batch
from projector.errors import LogForked, ModelNewer
from projector.projection import Projection
from projector.tables import fold_lock
from projector.writing import current, driver, jobs_aside, versions_of
from schemas import Position

# A frozen projector loses its transaction, and with it the locks.
FROZEN_S = 5

# What is folded is on the disk before the log is trimmed behind it. The register's entry stays
# locked until the batch is committed, so that nobody begins an epoch before these events who has
# not seen them.
_LOCK = """
WITH ours AS (
    SELECT partition FROM headrace.fold_lock WHERE partition = ANY(:partitions)
    ORDER BY partition FOR UPDATE SKIP LOCKED
), registered AS (
    SELECT partition FROM headrace.log_partitions
    WHERE partition IN (SELECT partition FROM ours) ORDER BY partition FOR SHARE SKIP LOCKED
)
SELECT set_config('idle_in_transaction_session_timeout', :frozen, true),
       set_config('synchronous_commit', 'on', true),
       ARRAY(SELECT partition FROM registered) AS locked
"""
_LOOK = """
SELECT partition, checkpoints.epoch, checkpoints.seq,
       (SELECT max(epoch) FROM headrace.log_epochs
        WHERE log_epochs.partition = wanted.partition) AS newest_epoch,
       (SELECT json_object_agg(name, version) FROM headrace.projections)::text AS built,
       EXISTS (SELECT 1 FROM headrace.parked WHERE partition = ANY($1)) AS parked
FROM unnest($1::integer[]) AS wanted (partition)
LEFT JOIN public.checkpoints USING (partition)
"""


_NOT_OURS = Position(-1, -1, -1)


@dataclass(frozen=True, slots=True)
class Ground:
    """Partitions as batches find them that hold their locks.

    `checkpoints` and `newest_epochs` are those of the partitions whose locks it holds, `aside` the
    jobs that are not folded, `projections` those whose rows are kept.
    """

    checkpoints: Mapping[int, Position | None]
    newest_epochs: Mapping[int, int]
    projections: list[Projection]
    aside: Mapping[str, Position]

    def bears(self, batch: Batch) -> bool:
        """Whether it has the batch's lock, and its checkpoint is where the batch begins."""
        return self.checkpoints.get(batch.partition, _NOT_OURS) == batch.behind


async def stand(
    connection: AsyncConnection, partitions: Sequence[int], known: Sequence[Projection]
) -> Ground:
    """Take the locks of partitions until the end of the transaction, those that nobody else has.

    Raises `ModelNewer`.
    """
    locks = await connection.execute(
        text(_LOCK), {"partitions": partitions, "frozen": f"{FROZEN_S}s"}
    )
    locked = locks.one().locked
    if not locked:
        return Ground({}, {}, [], {})
    rows = await (await driver(connection)).fetch(_LOOK, locked)
    versions = json.loads(rows[0]["built"] or "{}")
    _check_known(known, versions)
    return Ground(
        {row["partition"]: None if row["seq"] is None else Position(*row[:3]) for row in rows},
        {row["partition"]: row["newest_epoch"] for row in rows},
        current(known, versions),
        await jobs_aside(connection, locked) if rows[0]["parked"] else {},
    )


async def check_known(connection: AsyncConnection, known: Sequence[Projection]) -> None:
    """Raises `ModelNewer` when there are tables that this process is too old for."""
    _check_known(known, await versions_of(connection))


def _check_known(known: Sequence[Projection], versions: Mapping[str, int]) -> None:
    """What an older process does not know it would leave out, and move the checkpoint past it."""
    ours = {one.name: one.version for one in known}
    newer = sorted(name for name, version in versions.items() if version > ours.get(name, 0))
    if newer:
        raise ModelNewer(newer)


async def check_rightful(connection: AsyncConnection, ground: Ground, batch: Batch) -> None:
    """What a server appends that was superseded meanwhile is never archived. Raises `LogForked`."""
    newest = ground.newest_epochs[batch.partition]
    if batch.entries[0].position.epoch == newest == batch.end.epoch:
        return
    (registration,) = await registrations(connection, batch.partition)
    for entry in batch.entries:
        if not registration.rightful(entry.position):
            raise LogForked(entry.position)


async def make_locks(connection: AsyncConnection, partitions: Iterable[int]) -> None:
    """Make the rows to lock of partitions that nobody has folded so far."""
    for partition in partitions:
        await connection.execute(
            insert(fold_lock).values(partition=partition).on_conflict_do_nothing()
        )
