"""Small batches wait for each other while a transaction runs, and fail without each other."""

from collections.abc import Collection, Sequence

import anyio
import anyio.lowlevel
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from eventstore import EventStore, LogEntry
from projector import Projector
from projector.batches import Batch
from projector.errors import LogForked, ProjectorError
from projector.together import NotTogether, Together
from schemas import Position
from tests.histories import build, queued, recorded
from tests.projector.processes import blocked_backend
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
    """Keeps which partitions were folded together; the first fold waits until it is let go.

    Others are faster in the partitions that are `taken`.
    """

    def __init__(self, *, error: Exception | None = None, taken: Collection[int] = ()) -> None:
        self.turns: list[list[int]] = []
        self.begun = anyio.Event()
        self.let_go = anyio.Event()
        self._error = error
        self._taken = taken

    async def __call__(self, batches: Sequence[Batch]) -> Collection[Batch]:
        self.turns.append([one.partition for one in batches])
        if len(self.turns) == 1:
            self.begun.set()
            await self.let_go.wait()
        elif self._error:
            raise self._error
        return [one for one in batches if one.partition not in self._taken]


async def fold_behind(
    together: Together, transactions: Transactions, *batches: Batch
) -> dict[int, bool | None]:
    """What becomes of batches that all come while the transaction of partition 0 runs.

    None: it is to be folded alone.
    """
    found: dict[int, bool | None] = {}

    async def fold(one: Batch) -> None:
        try:
            found[one.partition] = await together.fold(one)
        except NotTogether:
            found[one.partition] = None

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


async def test_each_batch_of_a_transaction_hears_whether_another_projector_was_faster() -> None:
    transactions = Transactions(taken=[2])
    together = Together(transactions, most=100)
    found = await fold_behind(together, transactions, batch(1), batch(2), batch(3))
    assert found == {0: True, 1: True, 2: False, 3: True}


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
    told: list[int] = []

    async def follow() -> None:
        try:
            await together.fold(batch(2))
        except NotTogether:
            told.append(2)

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
            assert told == [2]
            transactions.let_go.set()
    assert transactions.turns == [[0]]


async def test_a_job_that_is_refused_spoils_no_other_partition(
    store: EventStore, engine: AsyncEngine
) -> None:
    # The first to ask goes alone: whose job is refused shares the next transaction.
    first, spoilt, *others = ONE_PER_PARTITION
    for tenant in (first, *others):
        await write(store, build(), tenant=tenant)
    job = await write(store, build(), tenant=spoilt)
    await refuse_job(engine, job.job)
    projector = Projector(store, engine)
    with anyio.fail_after(60), capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            for number in range(store.partitions):
                tasks.start_soon(projector.fold_batch, number)
    assert [one["error"] for one in logs if one["event"] == "folded_one_by_one"]
    await assert_only_parked(store, engine, job)


async def test_a_large_batch_has_a_transaction_of_its_own(
    store: EventStore, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.projector.FIRST_BATCH", len(build()))
    projector = Projector(store, engine)
    small, large = ONE_PER_PARTITION[:2]
    await write(store, [queued()], tenant=small)
    await write(store, build(), tenant=large)
    async with anyio.create_task_group() as tasks, engine.begin() as holding:
        # The small one stands in the middle of its transaction, for which other small ones wait.
        await holding.exec_driver_sql("LOCK TABLE jobs IN SHARE MODE")
        tasks.start_soon(projector.fold_batch, store.partition(small))
        await blocked_backend(engine)
        tasks.start_soon(projector.fold_batch, store.partition(large))
        await blocked_backend(engine, 2)
