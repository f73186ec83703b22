"""The archive cut into shares of whole jobs: each can be folded by itself, here or elsewhere.

A share is a range of job ids, so it is read along one index, and any number of processes may fold
as many shares at once. What they give is the same in whatever order it is put together.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import asyncpg
from anyio.streams.memory import MemoryObjectSendStream
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import LogEntry
from projector.archived import EVENTS, FOLDED, entry_of, histories, history_of
from projector.errors import RowRefused
from projector.folding import Folding, Parked
from projector.projection import Projection
from projector.writing import driver
from schemas import Job, Position

JOBS = 1_000
# Histories fetched at once: about what a socket takes, for with more Postgres would have to wait.
_FETCHED = 60
UNHURRIED = {"idle_in_transaction_session_timeout": "0", "datestyle": "ISO", "timezone": "UTC"}
"""A share is folded in the middle of a transaction, and others meanwhile. Times come as text."""


FoldedRows = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Share:
    """The jobs from `first` up to, not including, `last`; or those that are named."""

    first: str = ""
    last: str | None = None
    jobs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class FoldedShare:
    """What a share came to: rows by projection, as tuples of its columns; how much it was.

    No rows where one of its jobs has one that cannot be made.
    """

    share: Share
    rows: FoldedRows | None
    parked: list[Parked]
    events: int
    jobs: int


@dataclass(frozen=True, slots=True)
class Source:
    """The archive as one snapshot has it: through `seen`, or by name on other connections.

    `ends` is where the archive of each partition ends, `aside` from where on jobs are left out.
    """

    engine: AsyncEngine
    seen: AsyncConnection
    snapshot: str
    ends: Mapping[int, Position]
    aside: Mapping[str, Position]

    async def fold(
        self,
        engine: AsyncEngine,
        cut: Sequence[Share],
        projections: Sequence[Projection],
        give: Callable[[FoldedShare], Awaitable[None]],
    ) -> None:
        """Fold these shares, one after the other, on a connection of `engine` that sees it."""
        async with engine.connect() as connection:
            await on_snapshot(connection, self.snapshot)
            for share in cut:
                await give(await fold_share(connection, share, projections, self.aside))


async def shares(connection: AsyncConnection, *, jobs: int = JOBS) -> list[Share]:
    """All archived jobs in shares of so many, in order."""
    firsts = await (await driver(connection)).fetch(
        "SELECT job FROM (SELECT job, row_number() OVER (ORDER BY job) AS number "  # noqa: S608
        f"FROM {EVENTS} WHERE version = 1) AS numbered WHERE number % $1 = 1 ORDER BY job",
        jobs,
    )
    bounds = ["", *[row["job"] for row in firsts[1:]]]
    lasts: list[str | None] = [*bounds[1:], None]
    return [Share(first, last) for first, last in zip(bounds, lasts, strict=True)]


async def sample(connection: AsyncConnection, jobs: int) -> Share:
    """Some jobs, taken at random."""
    found = await (await driver(connection)).fetch(
        f"SELECT job FROM {EVENTS} WHERE version = 1 ORDER BY random() LIMIT $1",  # noqa: S608
        jobs,
    )
    return Share(jobs=tuple(sorted(row["job"] for row in found)))


async def fold_share(
    connection: AsyncConnection,
    share: Share,
    projections: Sequence[Projection],
    aside: Mapping[str, Position],
) -> FoldedShare:
    """Fold a share as the connection's transaction sees it."""
    folding, states = Folding(projections, aside), dict[str, Job]()
    rows: FoldedRows = {one.name: [] for one in projections}
    events = jobs = 0
    refused = False
    send, receive = anyio.create_memory_object_stream[list[asyncpg.Record]](1)
    async with anyio.create_task_group() as tasks, receive:
        tasks.start_soon(_fetch, await histories(connection, *_of_share(share)), send)
        async for fetched in receive:
            for row in fetched:
                job, history = history_of(row)
                folding.add(job, history, states)
                events += len(history)
            jobs += len(states)
            try:
                _move(folding, rows)
            except RowRefused:
                refused, folding = True, Folding((), aside)  # it only counts from here on
            states.clear()
    for one, of_many in folding.rows().items():
        rows[one.name] += map(one.values_of, of_many.values())
    return FoldedShare(share, None if refused else rows, folding.parked, events, jobs)


def _move(folding: Folding, to: FoldedRows) -> None:
    """Take the rows of whole jobs out of a folding, while they are in the processor's cache."""
    for one, of_jobs in folding.rows().items():
        if one.job:
            to[one.name] += map(one.values_of, of_jobs.values())
            of_jobs.clear()


async def share_entries(connection: AsyncConnection, share: Share) -> list[LogEntry]:
    """The events of a share as the connection's transaction sees them, each job's in order."""
    where, *args = _of_share(share)
    query = f"SELECT {FOLDED} FROM {EVENTS} WHERE {where} ORDER BY job, epoch, seq"  # noqa: S608
    return [entry_of(row) for row in await (await driver(connection)).fetch(query, *args)]


def _of_share(share: Share) -> tuple[Any, ...]:
    """What is true of a share's events, in SQL, and the arguments in it."""
    if share.jobs is not None:
        return "job = ANY($1)", list(share.jobs)
    if share.last is None:
        return "job >= $1", share.first
    return "job >= $1 AND job < $2", share.first, share.last


async def _fetch(
    cursor: "asyncpg.cursor.Cursor[asyncpg.Record]",
    to: MemoryObjectSendStream[list[asyncpg.Record]],
) -> None:
    """Ask for the next histories while these are folded: Postgres puts them together meanwhile."""
    async with to:
        while rows := await cursor.fetch(_FETCHED):
            await to.send(rows)


async def on_snapshot(connection: AsyncConnection, snapshot: str | None = None) -> str:
    """Have a transaction see the database as of now, or as another does; its snapshot's name."""
    if not connection.in_transaction():
        await connection.execution_options(isolation_level="REPEATABLE READ")
    if snapshot is not None:
        await connection.execute(text(f"SET TRANSACTION SNAPSHOT '{snapshot}'"))
        return snapshot
    return str((await connection.execute(text("SELECT pg_export_snapshot()"))).scalar_one())
