"""Proving and remaking the read model, against the real servers."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from anyio import to_thread
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import Difference, Projector, Replayed, list_jobs, rebuild, verify
from projector.replay import SHADOW, OnProgress
from schemas import JobRef, Position, UndecodableEvent
from service.embedded import Servers
from service.migrating import check
from tests.histories import TENANT, all_completed, build, queued, ready, repaired_build, started
from tests.projector.contents import contents, execute, folded, scalar
from tests.projector.processes import another_process, beside, blocked_backend
from tests.projector.writing import ONE_PER_PARTITION, write

pytestmark = pytest.mark.anyio

DEFINITIONS = """
SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable
FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
"""
"""Everything that makes up the tables of the read model: columns, indexes, constraints."""


async def write_jobs(store: EventStore) -> list[JobRef]:
    """A few jobs of every kind, all over the partitions."""
    return [
        job
        for tenant in ONE_PER_PARTITION
        for job in (
            await write(store, build(), tenant=tenant),
            await write(store, repaired_build(2), tenant=tenant),
            await write(store, [queued(), started()], tenant=tenant),
        )
    ]


@pytest.fixture
async def jobs(store: EventStore, projector: Projector) -> list[JobRef]:
    """The same jobs, folded."""
    written = await write_jobs(store)
    await projector.catch_up()
    return written


async def definitions(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return sorted((await connection.execute(text(DEFINITIONS))).scalars())


async def shadow_is_there(engine: AsyncEngine) -> bool:
    return bool(await scalar(engine, f"SELECT to_regnamespace('{SHADOW}') IS NOT NULL"))


async def differences(engine: AsyncEngine) -> list[Difference]:
    _, found = await verify(engine)
    return found


def at_the_first_job(run: Callable[[], Coroutine[Any, Any, object]]) -> OnProgress:
    """Run this beside the replay, once, while the replay stands in the middle of its work."""
    unused = [run]

    def tell(seen: int, total: int) -> None:
        if unused:
            beside(unused.pop())

    return tell


# --- verify --------------------------------------------------------------------------------------


async def test_verify_finds_nothing_where_nothing_is_wrong(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    events = len((await contents(engine))["events"])
    assert await verify(engine) == (Replayed(events=events, jobs=len(jobs)), [])


async def test_verify_finds_nothing_in_an_empty_database(engine: AsyncEngine) -> None:
    assert await verify(engine) == (Replayed(events=0, jobs=0), [])


async def test_verify_finds_nothing_while_events_wait_in_the_log(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await write(store, build(3))
    assert await differences(engine) == []


async def test_verify_names_every_tampered_column(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    job = jobs[0].job
    await execute(
        engine,
        "UPDATE jobs SET status = 'failed', attempt = 7, cost_usd = 0.1, preview_url = NULL, "
        f"error_message = 'odd', finished_at = finished_at + interval '1 us' WHERE id = '{job}'",
    )
    found = await differences(engine)
    assert {difference.job for difference in found} == {job}
    assert {d.column: (d.live, d.folded) for d in found if d.column != "finished_at"} == {
        "status": ("failed", "ready"),
        "attempt": (7, 1),
        "cost_usd": (0.1, 1.0),
        "preview_url": (None, "https://8080-sb-1.example"),
        "error_message": ("odd", None),
    }
    assert "finished_at" in {difference.column for difference in found}


async def test_verify_names_a_missing_row(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    position = await scalar(engine, f"SELECT position FROM jobs WHERE id = '{jobs[3].job}'")
    await execute(engine, f"DELETE FROM jobs WHERE id = '{jobs[3].job}'")
    assert await differences(engine) == [
        Difference(jobs[3].job, "row", "missing", "there", position)
    ]


async def test_verify_names_a_row_without_events(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    await execute(
        engine,
        "CREATE TEMPORARY TABLE extra ON COMMIT DROP AS SELECT * FROM jobs "
        f"WHERE id = '{jobs[2].job}'",
        "UPDATE extra SET id = 'nobody'",
        "INSERT INTO jobs SELECT * FROM extra",
    )
    assert await differences(engine) == [Difference("nobody", "row", "there", "no such job", None)]


async def test_verify_names_every_checkpoint_that_is_not_at_the_archives_end(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    end = {row["partition"]: row["seq"] for row in (await contents(engine))["checkpoints"]}
    await execute(
        engine,
        "UPDATE checkpoints SET seq = seq + 5 WHERE partition = 0",
        "UPDATE checkpoints SET seq = seq - 1 WHERE partition = 1",
        "UPDATE checkpoints SET epoch = 2 WHERE partition = 2",
        "DELETE FROM checkpoints WHERE partition = 3",
        "INSERT INTO checkpoints VALUES (4, 1, 1)",
    )
    assert [(d.column, d.live, d.folded) for d in await differences(engine)] == [
        ("checkpoint of partition 0", Position(0, 1, end[0] + 5), Position(0, 1, end[0])),
        ("checkpoint of partition 1", Position(1, 1, end[1] - 1), Position(1, 1, end[1])),
        ("checkpoint of partition 2", Position(2, 2, end[2]), Position(2, 1, end[2])),
        ("checkpoint of partition 3", None, Position(3, 1, end[3])),
        ("checkpoint of partition 4", Position(4, 1, 1), None),
    ]


async def test_a_difference_is_told_in_one_sentence(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await execute(engine, f"UPDATE jobs SET status = 'failed' WHERE id = '{jobs[0].job}'")
    (found,) = await differences(engine)
    assert str(found) == (
        f"job {jobs[0].job}: status is 'failed', its events say 'ready' "
        f"(last event at {found.position})"
    )


async def test_verify_tells_how_far_it_is(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    told: list[tuple[int, int]] = []
    replayed, _ = await verify(engine, on_progress=lambda seen, total: told.append((seen, total)))
    assert told == sorted(told)
    assert len(told) == len(jobs)
    assert told[-1] == (replayed.events, replayed.events)


async def test_verify_sees_one_moment_however_much_is_folded_meanwhile(
    store: EventStore,
    engine: AsyncEngine,
    jobs: list[JobRef],
    servers: Servers,
    database_url: str,
) -> None:
    await write(store, build(3))

    async def fold_everything() -> None:
        async with another_process(servers, database_url) as other:
            assert await other.projector.catch_up() == len(build())

    _, found = await verify(engine, on_progress=at_the_first_job(fold_everything))
    assert found == []
    assert (await contents(engine)) == await folded(store)


# --- rebuild -------------------------------------------------------------------------------------


async def test_a_rebuild_makes_the_same_rows(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    before = await contents(engine)
    replayed = await rebuild(engine)
    assert replayed == Replayed(events=len(before["events"]), jobs=len(jobs))
    assert await contents(engine) == before == await folded(store)
    assert await differences(engine) == []


async def test_a_rebuild_mends_whatever_was_tampered_with(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await execute(
        engine,
        f"DELETE FROM jobs WHERE id = '{jobs[0].job}'",
        "UPDATE jobs SET goal = 'another'",
        f"UPDATE jobs SET id = 'nobody' WHERE id = '{jobs[1].job}'",
        "UPDATE checkpoints SET seq = 1",
        "DELETE FROM checkpoints WHERE partition = 2",
    )
    assert await differences(engine) != []
    await rebuild(engine)
    assert await differences(engine) == []
    assert await contents(engine) == await folded(store)


async def test_a_rebuilt_table_is_defined_like_a_migrated_one(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    before = await definitions(engine)
    await rebuild(engine)
    assert await definitions(engine) == before
    await check(engine)
    assert not await shadow_is_there(engine)


async def test_an_empty_archive_is_rebuilt_to_empty_tables(engine: AsyncEngine) -> None:
    await execute(engine, "INSERT INTO checkpoints VALUES (1, 1, 9)")
    assert await rebuild(engine) == Replayed(events=0, jobs=0)
    assert await contents(engine) == {"jobs": [], "checkpoints": [], "events": []}


async def test_projecting_goes_on_behind_a_rebuild_on_the_same_connections(
    store: EventStore, engine: AsyncEngine, projector: Projector, jobs: list[JobRef]
) -> None:
    await rebuild(engine)
    await write(store, build(3))
    assert await projector.catch_up() == len(build())
    await rebuild(engine)
    await write(store, [started(2)], job=jobs[8].job, after=2)
    assert await projector.catch_up() == 1
    assert await contents(engine) == await folded(store)


async def test_a_rebuild_that_fails_in_the_middle_leaves_the_live_tables_untouched(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await execute(
        engine,
        "UPDATE jobs SET goal = 'the live one'",
        "UPDATE headrace.events SET data = '{'::bytea "
        f"WHERE job = '{jobs[5].job}' AND version = 2",
    )
    before = await contents(engine)
    tables = await scalar(engine, "SELECT array['jobs'::regclass::oid, 'checkpoints'::regclass]")
    with pytest.raises(UndecodableEvent):
        await rebuild(engine)
    assert await contents(engine) == before
    assert tables == await scalar(
        engine, "SELECT array['jobs'::regclass::oid, 'checkpoints'::regclass]"
    )
    assert not await shadow_is_there(engine)


async def test_a_rebuild_that_is_cancelled_leaves_nothing_behind(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    before = await contents(engine)
    with anyio.CancelScope() as scope:
        await rebuild(engine, on_progress=lambda seen, total: scope.cancel())
    assert scope.cancelled_caught
    assert await contents(engine) == before
    assert not await shadow_is_there(engine)
    await rebuild(engine)


async def test_readers_see_the_old_rows_until_the_new_ones_are_complete(
    engine: AsyncEngine, jobs: list[JobRef], servers: Servers, database_url: str
) -> None:
    await execute(engine, "UPDATE jobs SET goal = 'the old one'")
    seen: list[set[str]] = []

    async def read() -> None:
        async with (
            another_process(servers, database_url) as other,
            other.engine.connect() as connection,
        ):
            seen.append({row.goal for row in await list_jobs(connection, TENANT)})

    await rebuild(engine, on_progress=at_the_first_job(read))
    assert seen == [{"the old one"}]
    async with engine.connect() as connection:
        assert {row.goal for row in await list_jobs(connection, TENANT)} == {"a list"}


async def test_a_projector_waits_for_a_rebuild_and_loses_nothing(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    jobs: list[JobRef],
    servers: Servers,
    database_url: str,
) -> None:
    await write(store, build(3))

    async def fold_nothing() -> None:
        async with another_process(servers, database_url) as other:
            assert await other.projector.catch_up() == 0

    await rebuild(engine, on_progress=at_the_first_job(fold_nothing))
    assert await projector.catch_up() == len(build())
    assert await differences(engine) == []
    assert await contents(engine) == await folded(store)


async def test_the_first_events_of_a_partition_are_not_lost_to_a_rebuild(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    servers: Servers,
    database_url: str,
) -> None:
    await write(store, build())
    await write(store, build(2))
    await projector.catch_up()
    await write(store, build(), tenant="initech")  # nothing of this partition was folded so far

    async def fold_everything() -> None:
        async with another_process(servers, database_url) as other:
            await other.projector.catch_up()

    await rebuild(engine, on_progress=at_the_first_job(fold_everything))
    await projector.catch_up()
    assert await differences(engine) == []
    assert await contents(engine) == await folded(store)


async def test_two_rebuilds_at_once_come_one_after_the_other(
    store: EventStore,
    engine: AsyncEngine,
    jobs: list[JobRef],
    servers: Servers,
    database_url: str,
) -> None:
    async with (
        another_process(servers, database_url) as one,
        another_process(servers, database_url) as two,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(rebuild, one.engine)
        tasks.start_soon(rebuild, two.engine)
    assert await contents(engine) == await folded(store)


async def test_rebuilds_beside_running_projectors_end_with_the_right_rows(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    servers: Servers,
    database_url: str,
) -> None:
    async with another_process(servers, database_url) as other:

        async def build_and_fold() -> None:
            for number in range(1, 9):
                job = await write(store, all_completed())
                await projector.catch_up()
                await write(store, [ready(number)], job=job.job, after=len(all_completed()))
                await projector.catch_up()

        async def keep_rebuilding() -> None:
            for _ in range(4):
                await rebuild(other.engine)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(build_and_fold)
            tasks.start_soon(keep_rebuilding)
    await projector.catch_up()
    assert await differences(engine) == []
    assert await contents(engine) == await folded(store)


async def test_a_rebuild_that_begins_during_a_verify_waits_until_it_has_ended(
    engine: AsyncEngine, jobs: list[JobRef], servers: Servers, database_url: str
) -> None:
    async def remake() -> Replayed:
        async with another_process(servers, database_url) as other:
            return await rebuild(other.engine)

    with ThreadPoolExecutor(1) as another:
        begun: list[Future[Replayed]] = []

        async def begin_and_see_it_wait() -> None:
            begun.append(another.submit(asyncio.run, remake()))
            async with another_process(servers, database_url) as other:
                await blocked_backend(other.engine)

        replayed, found = await verify(engine, on_progress=at_the_first_job(begin_and_see_it_wait))
        assert found == []
        assert await to_thread.run_sync(begun[0].result) == replayed
