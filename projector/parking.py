"""Jobs that could not be folded: each stands aside, and a person decides what becomes of it."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict
from sqlalchemy import delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import LogEntry, postgres_errors
from projector.archived import EVENTS, FOLDED, entry_of
from projector.batches import Batch, write_job_by_job
from projector.errors import JobDetached, NotParked, ReplayRunning
from projector.folding import Parked
from projector.projections import PROJECTIONS
from projector.tables import fold_lock, parked
from projector.writing import built, driver, set_aside
from schemas import Position

_ONE_REPLAY = 0x68720001  # the key of an advisory lock: any number, but this one


class ParkedJob(BaseModel):
    """A job that is not folded from `position` on. `state`: `parked` or `discarded`."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    tenant: str
    position: str
    version: int
    type: str
    error: str
    state: str
    parked_at: datetime


async def one_replay(connection: AsyncConnection) -> None:
    """Hold off other rebuilds, retries and erasures until the end of the transaction.

    Raises `ReplayRunning`.
    """
    # Not past SQLAlchemy: its transaction begins with the first statement that it knows of.
    query = text("SELECT pg_try_advisory_xact_lock(:key)")
    if not await connection.scalar(query, {"key": _ONE_REPLAY}):
        raise ReplayRunning


async def parked_jobs(connection: AsyncConnection) -> list[ParkedJob]:
    """All jobs that stand aside, in the order of their parking."""
    found = await connection.execute(select(parked).order_by(parked.c.parked_at, parked.c.job))
    return [
        ParkedJob(
            job_id=row.job,
            tenant=row.tenant,
            position=str(Position(row.partition, row.epoch, row.seq)),
            version=row.version,
            type=row.type,
            error=row.error,
            state=row.state,
            parked_at=row.parked_at,
        )
        for row in found
    ]


async def retry(engine: AsyncEngine, job: str) -> Parked | None:
    """Fold a parked job's events again; where it was parked anew, None when all are folded.

    Raises `NotParked`, `JobDetached`, `ReplayRunning`, `PostgresUnavailable`; it stays parked then.
    """
    with postgres_errors():
        async with engine.begin() as connection:
            await one_replay(connection)
            at = await _taken_back(connection, job)
            # No projector is in the middle of a batch of this partition from here on.
            await connection.execute(
                select(fold_lock).where(fold_lock.c.partition == at.partition).with_for_update()
            )
            entries = await _events_from(connection, job, at)
            if not entries or entries[0].position != at:
                raise JobDetached(job)
            again = await write_job_by_job(
                connection,
                await built(connection, PROJECTIONS),
                [Batch(Position(at.partition, at.epoch, at.seq - 1), entries, {})],
                {},
            )
            await set_aside(connection, again)
    return again[0] if again else None


async def discard(engine: AsyncEngine, job: str) -> None:
    """Leave a parked job as it is for good: its row stays, its later events are never folded.

    Raises `NotParked`, `PostgresUnavailable`.
    """
    with postgres_errors():
        async with engine.begin() as connection:
            changed = await connection.execute(
                update(parked)
                .where(parked.c.job == job, parked.c.state == "parked")
                .values(state="discarded")
            )
            if not changed.rowcount:
                raise NotParked(job)


async def _taken_back(connection: AsyncConnection, job: str) -> Position:
    """From where the job was parked, which it is no more. One that was discarded may come back."""
    query = delete(parked).where(parked.c.job == job)
    found = await connection.execute(
        query.returning(parked.c.partition, parked.c.epoch, parked.c.seq)
    )
    at = found.one_or_none()
    if at is None:
        raise NotParked(job)
    return Position(*at)


async def _events_from(connection: AsyncConnection, job: str, at: Position) -> list[LogEntry]:
    rows = await (await driver(connection)).fetch(
        f"SELECT {FOLDED} FROM {EVENTS} "  # noqa: S608
        "WHERE job = $1 AND (epoch, seq) >= ($2, $3) ORDER BY epoch, seq",
        job,
        at.epoch,
        at.seq,
    )
    return [entry_of(row) for row in rows]
