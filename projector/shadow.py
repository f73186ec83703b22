"""Tables of the read model beside the live ones, while they are folded from the archive.

They are made, filled and given up or put in place in one transaction of one connection.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from asyncpg import PostgresError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import AddConstraint, CreateIndex, CreateTable

from projector.archived import entries_behind
from projector.batches import Batch, fold_batches, fold_job_by_job, is_refusal, write_job_by_job
from projector.errors import RowRefused
from projector.folding import Parked, Rows
from projector.parallel import folded
from projector.projection import Projection
from projector.shares import FoldedRows, FoldedShare, Share, Source, share_entries
from projector.tables import checkpoints
from projector.writing import checkpoint_rows, copy_rows, jobs_aside, write_rows
from schemas import Position

_BATCH = 4_000

OnProgress = Callable[[int, int], None]
"""Called with (events folded, events in all)."""


@dataclass(slots=True)
class Shadow:
    """Tables in a schema of their own, and what has been folded into them so far."""

    connection: AsyncConnection
    schema: str
    projections: Sequence[Projection]
    events: int = 0
    jobs: int = 0
    ends: dict[int, Position] = field(default_factory=dict)
    parked: list[Parked] = field(default_factory=list)

    async def make(self) -> None:
        """Make them, with their constraints. Foreign keys and indexes come when they are full."""
        await self.connection.execute(text(f"CREATE SCHEMA {self.schema}"))
        async with self._translated() as connection:
            for table in (checkpoints, *[projection.table for projection in self.projections]):
                await connection.execute(CreateTable(table, include_foreign_key_constraints=[]))

    async def fill(
        self,
        source: Source,
        cut: Sequence[Share],
        *,
        workers: int = 1,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Fold these shares into the tables."""
        total = sum(end.seq for end in source.ends.values())
        async with folded(source, cut, self.projections, workers) as results:
            async for share in results:
                self.parked += await self._write(share, source)
                self.events += share.events
                self.jobs += share.jobs
                if on_progress:
                    on_progress(self.events, total)
        self.ends = dict(source.ends)
        await write_rows(self.connection, checkpoint_rows(self.ends.values()), self.schema)

    async def index(self) -> None:
        """Give them their indexes and foreign keys."""
        async with self._translated() as connection:
            for projection in self.projections:
                for index in sorted(projection.table.indexes, key=lambda index: str(index.name)):
                    await connection.execute(CreateIndex(index))
                for key in projection.table.foreign_key_constraints:
                    await connection.execute(AddConstraint(key, isolate_from_table=False))

    async def catch_up(self, partitions: Sequence[int]) -> int:
        """Fold what is archived by now, up to a batch of each partition; how many events."""
        total = 0
        for partition in partitions:
            behind = self.ends.get(partition)
            entries = await entries_behind(self.connection, partition, behind, count=_BATCH)
            if entries:
                batch = Batch(behind, entries, {})
                aside = {one.job: one.position for one in self.parked}
                aside |= await jobs_aside(self.connection, [partition])
                self.parked += await self._fold(batch, aside)
                self.ends[partition] = batch.end
                await write_rows(self.connection, checkpoint_rows([batch.end]), self.schema)
                total += len(entries)
        self.events += total
        return total

    async def _fold(self, batch: Batch, aside: Mapping[str, Position]) -> list[Parked]:
        """Fold a partition's next entries; the jobs of which a row is refused, from there on."""

        connection, projections = self.connection, self.projections
        try:
            async with connection.begin_nested():
                folding = await fold_batches(connection, projections, [batch], aside)
                await write_rows(connection, folding.rows(), self.schema)
                return folding.parked
        except (RowRefused, DBAPIError, PostgresError) as error:
            if not is_refusal(error):
                raise
        batch.states.clear()  # they were moved on as far as it came
        return await write_job_by_job(connection, projections, [batch], aside, self.schema)

    async def _write(self, share: FoldedShare, source: Source) -> list[Parked]:
        """Write the rows of a share; the jobs that could not be folded or written to their end."""
        if share.rows is not None:
            try:
                async with self.connection.begin_nested():
                    await self._copy(share.rows)
                    return share.parked
            except (DBAPIError, PostgresError) as error:
                if not is_refusal(error):
                    raise
        entries = await share_entries(source.seen, share.share)
        return await fold_job_by_job(
            self.connection, self.projections, entries, {}, source.aside, self.schema
        )

    async def _copy(self, of_share: FoldedRows) -> None:
        tallies: Rows = {}
        for projection in self.projections:
            rows = of_share[projection.name]
            if projection.job:
                await copy_rows(self.connection, projection, rows, self.schema)
            else:
                of_one = [dict(zip(projection.columns, row, strict=True)) for row in rows]
                tallies[projection] = {projection.key_of(row): row for row in of_one}
        await write_rows(self.connection, tallies, self.schema)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[AsyncConnection]:
        """The connection, on which the read model's tables are those of this schema."""
        yield await self.connection.execution_options(schema_translate_map={None: self.schema})
        await self.connection.execution_options(schema_translate_map=None)
