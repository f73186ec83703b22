"""Remaking the read model from the archive, while it serves."""

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import Projector, list_jobs, rebuild, verify
from projector.errors import ReplayRunning
from projector.replay import SHADOW
from schemas import JobRef
from service.embedded import Servers
from service.migrating import check
from tests.histories import TENANT, all_completed, build, ready, started
from tests.projector.contents import EMPTY, contents, execute, folded, scalar
from tests.projector.processes import another_process, at_the_first_job
from tests.projector.writing import write

pytestmark = pytest.mark.anyio

DEFINITIONS = """
SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable
FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
"""
"""Everything that makes up the tables of the read model: columns, indexes, constraints."""


async def definitions(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return sorted((await connection.execute(text(DEFINITIONS))).scalars())


async def shadow_is_there(engine: AsyncEngine) -> bool:
    return bool(await scalar(engine, f"SELECT to_regnamespace('{SHADOW}') IS NOT NULL"))


async def assert_proven(store: EventStore, engine: AsyncEngine) -> None:
    """`verify` says that nothing is wrong, and it is right."""
    assert (await verify(engine))[1] == []
    assert await contents(engine) == await folded(store)


async def test_a_rebuild_makes_the_same_rows(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    before = await contents(engine)
    replayed = await rebuild(engine)
    assert (replayed.events, replayed.jobs) == (len(before["events"]), len(jobs))
    assert (replayed.parked, replayed.differing) == (0, ())
    assert await contents(engine) == before
    await assert_proven(store, engine)


async def test_a_rebuild_mends_whatever_was_tampered_with(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await execute(
        engine,
        f"DELETE FROM jobs WHERE id = '{jobs[2].job}'",
        "UPDATE jobs SET goal = 'another'",
        f"UPDATE jobs SET id = 'nobody' WHERE id = '{jobs[5].job}'",
        "UPDATE projects SET ready = 7",
        "TRUNCATE daily_stats",
        "UPDATE checkpoints SET seq = 1",
        "DELETE FROM checkpoints WHERE partition = 2",
    )
    assert (await verify(engine))[1] != []
    replayed = await rebuild(engine)
    assert set(replayed.differing) == {"jobs", "projects", "daily_stats"}
    await assert_proven(store, engine)


async def test_a_rebuilt_table_is_defined_like_a_migrated_one(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    before = await definitions(engine)
    await rebuild(engine)
    assert await definitions(engine) == before
    await check(engine)
    assert not await shadow_is_there(engine)


async def test_an_empty_archive_is_rebuilt_to_empty_tables(engine: AsyncEngine) -> None:
    await execute(
        engine, "INSERT INTO projects VALUES ('a', 'b', 1, 1, 1, 0, 0, 0, 0, 0, now(), now())"
    )
    replayed = await rebuild(engine)
    assert (replayed.events, replayed.jobs, replayed.differing) == (0, 0, ("projects",))
    assert await contents(engine) == EMPTY


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
    await execute(engine, "UPDATE jobs SET goal = 'the live one'")
    before = await contents(engine)
    tables = await scalar(engine, "SELECT array['jobs'::regclass::oid, 'checkpoints'::regclass]")

    def fail(_: int, __: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await rebuild(engine, on_progress=fail)
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


async def test_projectors_go_on_beside_a_rebuild_and_nothing_is_lost(
    store: EventStore,
    engine: AsyncEngine,
    jobs: list[JobRef],
    servers: Servers,
    database_url: str,
) -> None:
    await write(store, build(3))
    await write(store, [started(2)], job=jobs[8].job, after=2)

    async def fold_everything() -> None:
        async with another_process(servers, database_url) as other:
            assert await other.projector.catch_up() == len(build()) + 1

    replayed = await rebuild(engine, on_progress=at_the_first_job(fold_everything))
    assert replayed.events == len((await contents(engine))["events"])
    await assert_proven(store, engine)


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
    await assert_proven(store, engine)


async def test_a_rebuild_beside_another_is_refused(
    engine: AsyncEngine, jobs: list[JobRef], servers: Servers, database_url: str
) -> None:
    refused: list[str] = []

    async def rebuild_too() -> None:
        async with another_process(servers, database_url) as other:
            with pytest.raises(ReplayRunning) as caught:
                await rebuild(other.engine)
            refused.append(str(caught.value))

    await rebuild(engine, on_progress=at_the_first_job(rebuild_too))
    assert len(refused) == 1
    await rebuild(engine)  # the first one has ended


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
    await assert_proven(store, engine)
