"""Folds batches of entries, and finds the job that spoils one if there is any.

A fold that fails is known before anything is written: its job is parked, the others go on. A row
that cannot be made, or that only Postgres refuses, is found by writing job by job, and that job's
events one by one, each under a savepoint.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from asyncpg import PostgresError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore import EventStoreError, LogEntry
from projector.archived import states_of
from projector.errors import CheckpointMoved, ProjectorError, RowRefused
from projector.folding import Folding, Parked, by_job, fold_entries, parked_at
from projector.projection import Projection
from projector.writing import PUBLIC, write_rows
from schemas import Job, Position, SchemaError

# https://www.postgresql.org/docs/current/errcodes-appendix.html: data exception, integrity
# constraint violation, program limit exceeded, raised by a function. Everything else (a full disk,
# a missing table) is no fault of the job's.
_REFUSALS = ("22", "23", "54", "P0")
Refusal = RowRefused | DBAPIError | PostgresError
BATCH_ERRORS = (EventStoreError, ProjectorError, SchemaError, SQLAlchemyError, PostgresError)
"""What folding a batch raises, of whatever is no mistake in this code."""


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """The entries of a partition that come behind a position, and some of its jobs as of there."""

    behind: Position | None
    entries: Sequence[LogEntry]
    states: dict[str, Job]

    @property
    def partition(self) -> int:
        """Where its entries stand."""
        return self.entries[0].position.partition

    @property
    def end(self) -> Position:
        """The position of the last entry."""
        return self.entries[-1].position


async def fold_batches(
    connection: AsyncConnection,
    projections: Sequence[Projection],
    batches: Iterable[Batch],
    aside: Mapping[str, Position],
) -> Folding:
    """A folding of batches of different partitions.

    Jobs that are missing among a batch's states are read from the archive; all are moved on.
    `aside` tells from which position on jobs are left out.
    """
    folding = Folding(projections, aside)
    for batch in batches:
        await _complete(connection, batch, aside)
        for job, history in by_job(batch.entries).items():
            folding.add(job, history, batch.states)
    return folding


async def write_job_by_job(
    connection: AsyncConnection,
    projections: Sequence[Projection],
    batches: Iterable[Batch],
    aside: Mapping[str, Position],
    schema: str = PUBLIC,
) -> list[Parked]:
    """Fold batches and write the rows of each job by itself; which jobs are to be parked by it."""
    parked: list[Parked] = []
    for batch in batches:
        await _complete(connection, batch, aside)
        parked += await fold_job_by_job(
            connection, projections, batch.entries, batch.states, aside, schema
        )
    return parked


async def _complete(
    connection: AsyncConnection, batch: Batch, aside: Mapping[str, Position]
) -> None:
    """Have the states of all jobs that the batch goes on with, and of none that is left out."""
    first, states = batch.entries[0].position, batch.states
    left_out = {job for job, position in aside.items() if position <= first}
    for job in left_out & states.keys():
        del states[job]  # a retry goes on with it elsewhere
    new = {entry.event.job for entry in batch.entries if entry.event.version == 1}
    unknown = {entry.event.job for entry in batch.entries} - new - states.keys() - left_out
    if unknown and batch.behind is not None:
        states.update(await states_of(connection, unknown, upto=batch.behind))


async def fold_job_by_job(
    connection: AsyncConnection,
    projections: Sequence[Projection],
    entries: Sequence[LogEntry],
    states: dict[str, Job],
    aside: Mapping[str, Position],
    schema: str,
) -> list[Parked]:
    """Fold entries of any partitions and write each job by itself, event by event if refused."""
    parked: list[Parked] = []
    for name, history in by_job(entries).items():
        before = {job: states[job] for job in [name] if job in states}
        after = dict(before)
        folding = fold_entries(projections, history, after, aside)
        if await _refusal(connection, folding, schema) is None:
            parked += folding.parked
        else:
            after = before
            parked.append(await _up_to_refusal(connection, projections, history, after, schema))
        states.update(after)
    return parked


async def _up_to_refusal(
    connection: AsyncConnection,
    projections: Sequence[Projection],
    history: Sequence[LogEntry],
    states: dict[str, Job],
    schema: str,
) -> Parked:
    """Write a job's events one by one up to the one that is refused; that one parks it."""
    for entry in history:
        after = dict(states)
        folding = fold_entries(projections, [entry], after, {})
        if folding.parked:
            return folding.parked[0]
        refused = await _refusal(connection, folding, schema)
        if refused is not None:
            return parked_at(entry.position, entry.event, refused)
        states.update(after)
    raise CheckpointMoved  # each by itself was taken: what was in the way is gone, begin again


async def _refusal(connection: AsyncConnection, folding: Folding, schema: str) -> Refusal | None:
    """Write the rows under a savepoint; why they are refused, if they are."""
    try:
        async with connection.begin_nested():
            await write_rows(connection, folding.rows(), schema)
    except (RowRefused, DBAPIError, PostgresError) as error:
        if not is_refusal(error):
            raise
        return error
    return None


def is_refusal(error: Refusal) -> bool:
    """Whether it is said of what was to be written, so that it would be said again."""
    return isinstance(error, RowRefused) or sqlstate(error).startswith(_REFUSALS)


def sqlstate(error: DBAPIError | PostgresError) -> str:
    """What Postgres calls it, whichever way the statement went; empty if it did not say."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(said, "sqlstate", None) or "")
