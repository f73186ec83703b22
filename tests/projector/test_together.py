"""Small batches wait for each other while a transaction runs, and fail without each other."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import TaskGroup
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from eventstore import EventStore, LogEntry
from projector import Projector
from projector.batches import Batch
from projector.errors import LogForked
from projector.together import NotTogether, Together
from schemas import Position
from tests.histories import build, queued, recorded
from tests.projector.processes import blocked_backend
from tests.projector.spoiling import assert_only_parked, refuse_job
from tests.projector.writing import ONE_PER_PARTITION, write

pytestmark = pytest.mark.anyio


def batch(partition: int) -> Batch:
    """The first event of a partition."""
    (event,) = recorded([queued()])
    return Batch(None, [LogEntry(Position(partition, 1, 1), event)], {})


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


class Scene:
    """Partitions that take turns, and what becomes of them; all that is read is in `read`."""

    def __init__(self, transactions: Transactions) -> None:
        self.transactions = transactions
        self.together = Together(transactions)
        self.read: list[int] = []
        self.found: dict[int, bool | None] = {}

    async def take_turn(self, partition: int, reading: anyio.Event | None = None) -> None:
        """Read, which lasts until `reading` is set, and fold; None: that is to be done alone."""
        async with self.together.turn() as turn:
            self.read.append(partition)
            if reading is not None:
                await reading.wait()
            try:
                self.found[partition] = await turn.fold(batch(partition))
            except NotTogether:
                self.found[partition] = None

    async def find_nothing(self) -> None:
        async with self.together.turn():
            pass


@asynccontextmanager
async def behind_a_transaction(
    transactions: Transactions,
) -> AsyncIterator[tuple[Scene, TaskGroup]]:
    """While that of partition 0 runs, which ends with the block; then all others are waited for."""
    scene = Scene(transactions)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.take_turn, 0)
            await transactions.begun.wait()
            yield scene, tasks
            await anyio.wait_all_tasks_blocked()
            transactions.let_go.set()


async def test_who_waits_for_a_transaction_reads_behind_it_and_goes_in_the_next() -> None:
    transactions = Transactions()
    async with behind_a_transaction(transactions) as (scene, tasks):
        for number in (1, 2, 3):
            tasks.start_soon(scene.take_turn, number)
        tasks.start_soon(scene.find_nothing)
        await anyio.wait_all_tasks_blocked()
        assert scene.read == [0]
    assert transactions.turns == [[0], [1, 2, 3]]
    assert scene.found == {0: True, 1: True, 2: True, 3: True}


async def test_a_transaction_begins_when_all_that_take_part_have_read() -> None:
    transactions, slow = Transactions(), anyio.Event()
    async with behind_a_transaction(transactions) as (scene, tasks):
        tasks.start_soon(scene.take_turn, 1)
        tasks.start_soon(scene.take_turn, 2, slow)
        await anyio.wait_all_tasks_blocked()
        transactions.let_go.set()
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(scene.take_turn, 3)  # it is not too late
        await anyio.wait_all_tasks_blocked()
        assert transactions.turns == [[0]]
        slow.set()
    assert [sorted(turn) for turn in transactions.turns] == [[0], [1, 2, 3]]


async def test_turns_in_which_nobody_finds_anything_hold_nobody_up() -> None:
    scene = Scene(Transactions())
    scene.transactions.let_go.set()
    with anyio.fail_after(20):
        for _ in range(3):
            await scene.find_nothing()
        await scene.take_turn(1)
    assert scene.found == {1: True}


async def test_each_batch_of_a_transaction_hears_whether_another_projector_was_faster() -> None:
    transactions = Transactions(taken=[2])
    async with behind_a_transaction(transactions) as (scene, tasks):
        for number in (1, 2, 3):
            tasks.start_soon(scene.take_turn, number)
    assert scene.found == {0: True, 1: True, 2: False, 3: True}


async def test_of_a_partition_that_is_asked_for_twice_at_once_one_batch_is_folded() -> None:
    transactions = Transactions()
    async with behind_a_transaction(transactions) as (scene, tasks):
        tasks.start_soon(scene.take_turn, 1)
        tasks.start_soon(scene.take_turn, 1)
    assert transactions.turns == [[0], [1]]


async def test_batches_that_failed_together_are_each_to_be_folded_alone() -> None:
    transactions = Transactions(error=LogForked(Position(1, 1, 1)))
    with capture_logs() as logs:
        async with behind_a_transaction(transactions) as (scene, tasks):
            tasks.start_soon(scene.take_turn, 1)
            tasks.start_soon(scene.take_turn, 2)
    assert scene.found == {0: True, 1: None, 2: None}
    (told,) = logs
    assert (told["event"], told["partitions"]) == ("folded_one_by_one", [1, 2])
    assert "superseded" in told["error"]


async def test_a_batch_that_failed_by_itself_says_why() -> None:
    transactions = Transactions(error=LogForked(Position(1, 1, 1)))
    transactions.turns.append([])  # the next one is not held
    with pytest.raises(LogForked):
        await Scene(transactions).take_turn(1)


async def test_who_gives_up_before_it_has_read_keeps_nobody_waiting() -> None:
    transactions = Transactions()
    async with behind_a_transaction(transactions) as (scene, tasks):
        async with anyio.create_task_group() as impatient:
            impatient.start_soon(scene.take_turn, 1)
            await anyio.wait_all_tasks_blocked()
            impatient.cancel_scope.cancel()
        tasks.start_soon(scene.take_turn, 2)
    assert transactions.turns == [[0], [2]]


async def test_who_shares_a_transaction_that_is_cut_off_is_told() -> None:
    scene = Scene(Transactions())
    slow = anyio.Event()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as first:
            first.start_soon(scene.take_turn, 1)  # the first that waits carries it out
            tasks.start_soon(scene.take_turn, 2, slow)
            await anyio.wait_all_tasks_blocked()
            slow.set()
            await scene.transactions.begun.wait()
            first.cancel_scope.cancel()
    assert scene.transactions.turns == [[1, 2]]
    assert scene.found == {2: None}


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
        # The large one stands in the middle of its transaction, and no small one waits for it.
        await holding.exec_driver_sql("LOCK TABLE jobs IN SHARE MODE")
        tasks.start_soon(projector.fold_batch, store.partition(large))
        await blocked_backend(engine)
        tasks.start_soon(projector.fold_batch, store.partition(small))
        await blocked_backend(engine, 2)
