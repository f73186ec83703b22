"""The register of the log's partitions: Postgres owns the truth about which log there is."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore.connection import asking, postgres_errors
from eventstore.tables import log_epochs_table, log_partitions_table
from schemas import Position

LOCK_MS = 20_000


@dataclass(frozen=True, slots=True)
class Epoch:
    """A generation of a partition's log, from `start_seq` to where the next one begins."""

    number: int
    start_seq: int
    run: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """What Postgres knows of a partition's log; `state` is `creating` or `open`.

    `epochs` in order, at least one.
    """

    partition: int
    lineage: str
    state: str
    epochs: tuple[Epoch, ...]

    @property
    def newest(self) -> Epoch:
        """The epoch that events are appended in."""
        return self.epochs[-1]

    def rightful(self, position: Position) -> bool:
        """Whether `position` belongs to this history, not to an end that was lost or forked.

        Epochs that are not registered yet are taken to continue it.
        """
        return all(position.seq < seq for seq in self._starts_after(position.epoch))

    def shared_with(self, position: Position, end: Position) -> Position:
        """The last position at or before `position` of this history, whose last one is `end`."""
        ends = [start - 1 for start in self._starts_after(position.epoch)]
        seq = min(position.seq, end.seq, *ends)
        epoch = next((e.number for e in reversed(self.epochs) if e.start_seq <= seq), 0)
        return Position(self.partition, epoch, seq)

    def _starts_after(self, epoch: int) -> list[int]:
        """Where the epochs after this one began: each may have cut off the end of any before it."""
        return [one.start_seq for one in self.epochs if one.number > epoch]


class Register:
    """Reads and writes the register."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def all(self) -> list[Registration]:
        """The partitions in order; none before the log was made."""
        async with asking(self._engine) as connection:
            return await registrations(connection)

    async def one(self, partition: int) -> Registration:
        """A registered partition."""
        async with asking(self._engine) as connection:
            (found,) = await registrations(connection, partition)
        return found

    async def add(self, partitions: Sequence[Registration]) -> list[Registration]:
        """Enter all partitions of a log, unless they are registered; what is registered then."""
        table = log_partitions_table
        rows = [
            {"partition": one.partition, "lineage": one.lineage, "state": one.state}
            for one in partitions
        ]
        adding = insert(table).values(rows).on_conflict_do_nothing().returning(table.c.partition)
        with postgres_errors():
            async with self._engine.begin() as connection:
                added = set(await connection.scalars(adding))
                await _enter(
                    connection,
                    [
                        (one.partition, epoch)
                        for one in partitions
                        if one.partition in added
                        for epoch in one.epochs
                    ],
                )
                return await registrations(connection)

    @asynccontextmanager
    async def held(self, partition: int) -> AsyncIterator["Held"]:
        """One partition's entry, locked: neither another opener nor a projector gets past.

        What was entered stands when the block ends without an error.
        """
        async with self._locked(partition) as (one,):
            yield one

    @asynccontextmanager
    async def all_held(self) -> AsyncIterator[list["Held"]]:
        """The entries of all partitions in order, locked; what was entered stands for all or none.

        They are locked in this order, so that two who do it never wait for each other.
        """
        async with self._locked(None) as entries:
            yield entries

    @asynccontextmanager
    async def _locked(self, partition: int | None) -> AsyncIterator[list["Held"]]:
        table = log_partitions_table
        locks = select(table.c.partition).order_by(table.c.partition).with_for_update()
        if partition is not None:
            locks = locks.where(table.c.partition == partition)
        with postgres_errors():
            async with self._engine.begin() as connection:
                await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MS}"))
                await connection.execute(locks)
                yield [Held(connection, one) for one in await registrations(connection, partition)]


@dataclass(slots=True)
class Held:
    """A locked entry of the register."""

    connection: AsyncConnection
    registration: Registration

    async def enter(self, epochs: Sequence[Epoch]) -> None:
        """Enter newer epochs."""
        await _enter(self.connection, [(self.registration.partition, one) for one in epochs])

    async def mark_open(self) -> None:
        """The partition's log is in Redis: from now on its absence is a loss."""
        table, partition = log_partitions_table, self.registration.partition
        await self.connection.execute(
            update(table).where(table.c.partition == partition).values(state="open")
        )


async def shared(connection: AsyncConnection, partition: int) -> Registration:
    """A partition's entry, which no opener changes before the connection's transaction ends."""
    table = log_partitions_table
    await connection.execute(
        select(table).where(table.c.partition == partition).with_for_update(read=True)
    )
    (found,) = await registrations(connection, partition)
    return found


async def registrations(
    connection: AsyncConnection, partition: int | None = None
) -> list[Registration]:
    """The entries of all partitions, or of one."""
    partitions, epochs = log_partitions_table, log_epochs_table
    query = (
        select(partitions, epochs.c.epoch, epochs.c.start_seq, epochs.c.run)
        .join(epochs, epochs.c.partition == partitions.c.partition)
        .order_by(partitions.c.partition, epochs.c.epoch)
    )
    if partition is not None:
        query = query.where(partitions.c.partition == partition)
    rows = (await connection.execute(query)).all()
    return [
        Registration(
            *entry, epochs=tuple(Epoch(row.epoch, row.start_seq, row.run) for row in of_partition)
        )
        for entry, of_partition in groupby(
            rows, key=lambda row: (row.partition, row.lineage, row.state)
        )
    ]


async def _enter(connection: AsyncConnection, epochs: Sequence[tuple[int, Epoch]]) -> None:
    """Enter epochs of partitions."""
    if epochs:
        await connection.execute(
            insert(log_epochs_table),
            [
                {
                    "partition": partition,
                    "epoch": one.number,
                    "start_seq": one.start_seq,
                    "run": one.run,
                }
                for partition, one in epochs
            ],
        )
