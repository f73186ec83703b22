"""Small batches wait for each other while a transaction runs, and fail without each other."""

from collections.abc import Collection, Sequence

import anyio
import anyio.lowlevel
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore, LogEntry
from projector import Projector
from projector.batches import Batch
from projector.errors import LogForked, ProjectorError
from projector.together import Together
from schemas import Position
from tests.histories import build, recorded
from tests.projector.spoiling import assert_only_parked, refuse_job
from tests.projector.writing import ONE_PER_PARTITION, write

pytestmark = pytest.mark.anyio


def batch(partition: int, events: int = 1) -> Batch:
    """The first events of a partition."""
    entries = [
        LogEntry(Position(partition, 1, seq), event)
        for seq, event in enumerate(recorded(build()[:events]), start=1)
    ]
    return Batch(None, entries, {})


class Transactions:
    """Keeps which partitions were folded together; the first fold waits until it is let go."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.turns: list[list[int]] = []
        self.begun = anyio.Event()
        self.let_go = anyio.Event()
        self._error = error

    async def __call__(self, batches: Sequence[Batch]) -> Collection[Batch]:
        self.turns.append([one.partition for one in batches])
        if len(self.turns) == 1:
            self.begun.set()
            await self.let_go.wait()
        elif self._error:
            raise self._error
        return batches


async def fold_behind(
    together: Together, transactions: Transactions, *batches: Batch
) -> dict[int, bool | None]:
    """What becomes of batches that all come while the transaction of partition 0 runs."""
    found: dict[int, bool | None] = {}

    async def fold(one: Batch) -> None:
        found[one.partition] = await together.fold(one)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fold, batch(0))
            await transactions.begun.wait()
            for one in batches:
                tasks.start_soon(fold, one)
            await anyio.wait_all_tasks_blocked()
            transactions.let_go.set()
    return found


async def test_what_comes_while_a_transaction_runs_goes_together_in_the_next() -> None:
    transactions = Transactions()
    together = Together(transactions, most=100)
    found = await fold_behind(together, transactions, batch(1), batch(2), batch(3))
    assert transactions.turns == [[0], [1, 2, 3]]
    assert found == {0: True, 1: True, 2: True, 3: True}


async def test_a_transaction_that_has_enough_events_takes_no_more_batches() -> None:
    transactions = Transactions()
    together = Together(transactions, most=4)
    few = [batch(number, events=2) for number in (1, 2, 3)]
    found = await fold_behind(together, transactions, *few)
    assert transactions.turns == [[0], [1, 2], [3]]
    assert set(found.values()) == {True}


async def test_of_a_partition_that_is_asked_for_twice_at_once_one_batch_is_folded() -> None:
    transactions = Transactions()
    together = Together(transactions, most=100)
    twice = [batch(1), batch(1)]
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(together.fold, batch(0))
            await transactions.begun.wait()
            tasks.start_soon(together.fold, twice[0])
            await anyio.wait_all_tasks_blocked()
            assert await together.fold(twice[1]) is False
            transactions.let_go.set()
    assert transactions.turns == [[0], [1]]


async def test_batches_that_failed_together_are_each_to_be_folded_alone() -> None:
    transactions = Transactions(error=LogForked(Position(1, 1, 1)))
    together = Together(transactions, most=100)
    assert await fold_behind(together, transactions, batch(1), batch(2)) == {
        0: True,
        1: None,
        2: None,
    }


async def test_a_batch_that_failed_by_itself_says_why() -> None:
    transactions = Transactions(error=LogForked(Position(1, 1, 1)))
    transactions.turns.append([])  # the next one is not held
    with pytest.raises(ProjectorError, match="superseded"):
        await Together(transactions, most=100).fold(batch(1))


async def test_who_waits_for_a_transaction_that_is_cut_off_is_told() -> None:
    transactions = Transactions()
    together = Together(transactions, most=100)
    found: list[bool | None] = []

    async def follow() -> None:
        found.append(await together.fold(batch(2)))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(together.fold, batch(0))
            await transactions.begun.wait()
            with anyio.CancelScope() as cut:
                async with anyio.create_task_group() as leading:
                    leading.start_soon(together.fold, batch(1))
                    await anyio.wait_all_tasks_blocked()
                    tasks.start_soon(follow)
                    await anyio.wait_all_tasks_blocked()
                    cut.cancel()
            await anyio.wait_all_tasks_blocked()
            assert found == [None]
            transactions.let_go.set()
    assert transactions.turns == [[0]]


async def test_a_job_that_is_refused_spoils_no_other_partition(
    store: EventStore, engine: AsyncEngine
) -> None:
    for tenant in ONE_PER_PARTITION[1:]:
        await write(store, build(), tenant=tenant)
    job = await write(store, build(), tenant=ONE_PER_PARTITION[0])
    await refuse_job(engine, job.job)
    projector = Projector(store, engine)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(store.partitions):
                tasks.start_soon(projector.fold_batch, number)
    await assert_only_parked(store, engine, job)
