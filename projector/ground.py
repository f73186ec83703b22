"""What a batch stands on: the locks it holds, and what it finds once it holds them.

Two statements whatever the number of tables, for small batches cost as much as their statements.
What the second reads nobody can change any more: the first took the locks.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore import LogEntry
from eventstore.register import registrations
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
    SELECT partition FROM headrace.fold_lock WHERE partition = :partition FOR UPDATE SKIP LOCKED
), registered AS (
    SELECT partition FROM headrace.log_partitions
    WHERE partition IN (SELECT partition FROM ours) FOR SHARE
)
SELECT set_config('idle_in_transaction_session_timeout', :frozen, true),
       set_config('synchronous_commit', 'on', true),
       (SELECT count(*) FROM registered) AS locked
"""
_LOOK = """
SELECT checkpoints.epoch, checkpoints.seq,
       (SELECT max(epoch) FROM headrace.log_epochs WHERE partition = $1) AS newest_epoch,
       (SELECT json_object_agg(name, version) FROM headrace.projections)::text AS built,
       EXISTS (SELECT 1 FROM headrace.parked WHERE partition = $1) AS parked
FROM (VALUES ($1::integer)) AS wanted (partition)
LEFT JOIN public.checkpoints USING (partition)
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """A partition as a batch finds it that holds its locks.

    `aside` are the jobs that are not folded, `projections` those whose rows are kept.
    """

    checkpoint: Position | None
    newest_epoch: int
    projections: list[Projection]
    aside: Mapping[str, Position]


async def stand(
    connection: AsyncConnection, partition: int, known: Sequence[Projection]
) -> Ground | None:
    """Take a partition's locks until the end of the transaction; None when another has them.

    Raises `ModelNewer`.
    """
    locks = await connection.execute(
        text(_LOCK), {"partition": partition, "frozen": f"{FROZEN_S}s"}
    )
    if not locks.one().locked:
        return None
    row = await (await driver(connection)).fetchrow(_LOOK, partition)
    assert row is not None  # noqa: S101 - a left join of one row has one
    versions = json.loads(row["built"] or "{}")
    _check_known(known, versions)
    return Ground(
        Position(partition, row["epoch"], row["seq"]) if row["seq"] is not None else None,
        row["newest_epoch"],
        current(known, versions),
        await jobs_aside(connection, partition) if row["parked"] else {},
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


async def check_rightful(
    connection: AsyncConnection, ground: Ground, entries: Sequence[LogEntry]
) -> None:
    """What a server appends that was superseded meanwhile is never archived. Raises `LogForked`."""
    if entries[0].position.epoch == ground.newest_epoch == entries[-1].position.epoch:
        return
    (registration,) = await registrations(connection, entries[0].position.partition)
    for entry in entries:
        if not registration.rightful(entry.position):
            raise LogForked(entry.position)


async def make_locks(connection: AsyncConnection, partitions: Iterable[int]) -> None:
    """Make the rows to lock of partitions that nobody has folded so far."""
    for partition in partitions:
        await connection.execute(
            insert(fold_lock).values(partition=partition).on_conflict_do_nothing()
        )
