"""Events of a server that another has superseded: seen by a projector, and never archived."""

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import Archive, EventStore, LogUnverified
from eventstore.register import Epoch
from eventstore.verification import compare
from projector import Projector
from projector.errors import LogForked
from tests.histories import TENANT, queued, started
from tests.projector.contents import contents, execute, folded
from tests.projector.processes import blocked_backend
from tests.projector.writing import ONE_PER_PARTITION, write

OURS = ONE_PER_PARTITION.index(TENANT)


async def superseded(archive: Archive, *epochs: tuple[int, int]) -> None:
    """Other servers have been opened, each for a new epoch from this seq on."""
    async with archive.register.held(OURS) as held:
        await held.enter([Epoch(number, start_seq, "elsewhere") for number, start_seq in epochs])


async def seqs(engine: AsyncEngine) -> list[int]:
    return [event["seq"] for event in (await contents(engine))["events"]]


async def test_what_a_superseded_server_took_before_it_was_superseded_is_archived(
    store: EventStore, engine: AsyncEngine, projector: Projector, archive: Archive
) -> None:
    await write(store, [queued(), started(), started(2)])
    await superseded(archive, (2, 4))
    assert await projector.catch_up() == 3
    assert await contents(engine) == await folded(store)


@pytest.mark.parametrize("epochs", [[(2, 3)], [(2, 4), (3, 3)], [(2, 1), (3, 9)]])
async def test_a_batch_with_an_event_behind_a_newer_epoch_moves_nothing(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    archive: Archive,
    epochs: list[tuple[int, int]],
) -> None:
    await write(store, [queued(), started()])
    await projector.fold_batch(OURS)
    before = await contents(engine)
    job = await write(store, [queued()])
    await write(store, [started()], job=job.job, after=1)
    await superseded(archive, *epochs)
    for _ in range(2):
        with pytest.raises(LogForked) as caught:
            await projector.fold_batch(OURS)
        assert caught.value.position.seq == 3
        assert await contents(engine) == before


async def test_a_fork_in_one_partition_leaves_the_others_alone(
    store: EventStore, engine: AsyncEngine, projector: Projector, archive: Archive
) -> None:
    await superseded(archive, (2, 1))
    for tenant in ONE_PER_PARTITION:
        await write(store, [queued()], tenant=tenant)
    for partition in range(store.partitions):
        if partition == OURS:
            with pytest.raises(LogForked):
                await projector.fold_batch(partition)
        else:
            assert await projector.fold_batch(partition) == 1


async def test_a_batch_does_not_get_past_whoever_begins_an_epoch_and_then_sees_it(
    store: EventStore, engine: AsyncEngine, projector: Projector, archive: Archive
) -> None:
    await write(store, [queued(), started()])
    async with archive.register.held(OURS) as held:
        assert await projector.fold_batch(OURS) == 0
        await held.enter([Epoch(2, 2, "elsewhere")])
    with pytest.raises(LogForked) as refused:
        await projector.fold_batch(OURS)
    assert refused.value.position.seq == 2
    assert await seqs(engine) == []


async def test_a_partition_whose_entry_is_held_keeps_no_other_waiting(
    store: EventStore, engine: AsyncEngine, archive: Archive
) -> None:
    for tenant in ONE_PER_PARTITION:
        await write(store, [queued()], tenant=tenant)
    projector = Projector(store, engine)
    async with archive.register.held(OURS):
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for number in range(store.partitions):
                    tasks.start_soon(projector.fold_batch, number)
        assert len(await seqs(engine)) == len(ONE_PER_PARTITION) - 1
    assert await projector.fold_batch(OURS) == 1


async def test_who_begins_an_epoch_waits_for_a_batch_under_way_and_then_sees_what_it_archived(
    store: EventStore, engine: AsyncEngine, projector: Projector, archive: Archive
) -> None:
    await write(store, [queued(), started()])
    known: list[int] = []

    async def begin() -> None:
        async with archive.register.held(OURS):
            known.extend(await seqs(engine))

    async with anyio.create_task_group() as tasks, engine.begin() as holding:
        # The batch stands in the middle, behind its look at the register.
        await holding.exec_driver_sql("LOCK TABLE headrace.events IN SHARE MODE")
        tasks.start_soon(projector.fold_batch, OURS)
        await blocked_backend(engine)
        tasks.start_soon(begin)
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock'"
        )
        with anyio.fail_after(30):
            while (await holding.exec_driver_sql(query)).scalar_one() < 2:
                await anyio.lowlevel.checkpoint()
                await holding.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
    assert known == [1, 2]


async def test_a_log_that_ends_behind_a_newer_epoch_is_not_opened(
    store: EventStore, engine: AsyncEngine, archive: Archive
) -> None:
    await write(store, [queued(), started()])
    await superseded(archive, (2, 2))
    with pytest.raises(LogUnverified, match="ends at 1-2, and a newer epoch"):
        await compare(store.redis, archive, store.keys(TENANT), await store.log_end(OURS))
    await execute(engine, "DELETE FROM headrace.log_epochs WHERE epoch = 2")
    await compare(store.redis, archive, store.keys(TENANT), await store.log_end(OURS))
