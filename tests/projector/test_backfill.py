"""A projection that is new, or whose fold has changed, is folded from the archive by itself."""

from dataclasses import replace
from datetime import UTC, datetime

import anyio
import pytest
from sqlalchemy import CheckConstraint, MetaData
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from eventstore import EventStore, Hub
from eventstore.parts import months, part
from projector import Projector, backfill, rebuild, verify
from projector.errors import ModelNewer
from projector.projection import Change, Projection
from projector.projections import DAILY_STATS, JOBS, PROJECTIONS
from schemas import Job, JobRef
from service.embedded import Servers
from tests.histories import all_completed, build, ready, started
from tests.projector.contents import contents, execute, folded, scalar
from tests.projector.processes import another_process, at_the_first_job, beside, until
from tests.projector.spoiling import parked, stumbling
from tests.projector.writing import write

pytestmark = pytest.mark.anyio


async def forget(engine: AsyncEngine, *names: str) -> None:
    """As if these projections were new: their tables are empty, and nobody has built them."""
    tables = ", ".join(names)
    await execute(
        engine,
        f"DELETE FROM headrace.projections WHERE name = ANY('{{{tables}}}')",
        f"TRUNCATE {tables} CASCADE",
    )


async def test_a_new_projection_is_left_out_until_it_is_built(
    store: EventStore, engine: AsyncEngine, projector: Projector, jobs: list[JobRef]
) -> None:
    await forget(engine, "daily_stats")
    await write(store, build(3))
    assert await projector.catch_up() == len(build())
    live = await contents(engine)
    assert live == await folded(store) | {"daily_stats": []}
    assert (await verify(engine))[1] == []
    assert await backfill(engine) == ["daily_stats"]
    assert await contents(engine) == await folded(store)
    assert await backfill(engine) == []


async def test_a_built_projection_is_folded_into_from_then_on(
    store: EventStore, engine: AsyncEngine, projector: Projector, jobs: list[JobRef]
) -> None:
    await forget(engine, "projects", "daily_stats")
    assert set(await backfill(engine)) == {"projects", "daily_stats"}
    await write(store, build(3))
    await projector.catch_up()
    assert await contents(engine) == await folded(store)


@pytest.mark.parametrize("name", ["jobs", "phases", "builds"])
async def test_tables_that_refer_to_each_other_are_left_out_and_built_together(
    store: EventStore, engine: AsyncEngine, projector: Projector, jobs: list[JobRef], name: str
) -> None:
    await forget(engine, name)
    await write(store, build(3))
    await projector.catch_up()
    assert await parked(engine) == {}
    assert (await verify(engine))[1] == []
    assert name in await backfill(engine)
    assert await contents(engine) == await folded(store)


async def test_projectors_fold_on_beside_a_backfill_and_nothing_is_lost(
    store: EventStore,
    engine: AsyncEngine,
    jobs: list[JobRef],
    servers: Servers,
    database_url: str,
) -> None:
    await forget(engine, "daily_stats", "projects")
    await write(store, build(3))
    await write(store, [started(2)], job=jobs[8].job, after=2)
    unused = [1]

    async def fold() -> None:
        async with another_process(servers, database_url) as other:
            assert await other.projector.catch_up() == len(build()) + 1

    def fold_once(_: int, __: int) -> None:
        if unused:
            unused.clear()
            beside(fold)

    assert set(await backfill(engine, on_progress=fold_once)) == {"projects", "daily_stats"}
    assert not unused
    assert await contents(engine) == await folded(store)


async def test_a_backfill_leaves_the_other_tables_where_they_are(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await execute(engine, "UPDATE jobs SET goal = 'the live one'")
    await forget(engine, "daily_stats")
    tables = "SELECT array['jobs'::regclass::oid, 'phases'::regclass, 'projects'::regclass]"
    before = await scalar(engine, tables)
    await backfill(engine)
    assert await scalar(engine, tables) == before
    assert await scalar(engine, "SELECT DISTINCT goal FROM jobs") == "the live one"


# --- a fold that changed -------------------------------------------------------------------------


def with_newer_days(monkeypatch: pytest.MonkeyPatch, days: Projection) -> tuple[Projection, ...]:
    """All projections, as replays know them from here on: the days last, by a newer fold."""
    newer = replace(days, version=DAILY_STATS.version + 1)
    projections = tuple(newer if one is DAILY_STATS else one for one in PROJECTIONS)
    monkeypatch.setattr("projector.replay.PROJECTIONS", projections)
    return projections


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> tuple[Projection, ...]:
    """Newer code: a day counts each queued job twice."""
    once = DAILY_STATS.of_sum
    assert once is not None

    def twice(job: Job) -> Change:
        key, said = once(job)
        return key, said | {"queued": 2 * said["queued"]}

    return with_newer_days(monkeypatch, replace(DAILY_STATS, of_sum=twice))


async def test_a_fold_that_changed_is_left_out_until_the_archive_is_folded_by_it(
    store: EventStore,
    engine: AsyncEngine,
    jobs: list[JobRef],
    changed: tuple[Projection, ...],
) -> None:
    before = await contents(engine)
    newer = Projector(store, engine, changed)
    await write(store, all_completed())
    await newer.catch_up()
    after = await contents(engine)
    assert after["daily_stats"] == before["daily_stats"]
    assert len(after["jobs"]) == len(before["jobs"]) + 1
    assert await backfill(engine) == ["daily_stats"]
    assert await scalar(engine, "SELECT sum(queued) FROM daily_stats") == 2 * (len(jobs) + 1)
    await write(store, build(3))
    await newer.catch_up()
    assert await scalar(engine, "SELECT sum(queued) FROM daily_stats") == 2 * (len(jobs) + 2)
    assert (await verify(engine))[1] == []


async def test_a_table_that_others_refer_to_may_change_while_projectors_fold(
    store: EventStore,
    engine: AsyncEngine,
    jobs: list[JobRef],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    newer = tuple(replace(one, version=2) if one is JOBS else one for one in PROJECTIONS)
    monkeypatch.setattr("projector.replay.PROJECTIONS", newer)
    job = await write(store, all_completed())
    projector = Projector(store, engine, newer)
    await projector.catch_up()
    assert await parked(engine) == {}
    assert "jobs" in await backfill(engine)
    await write(store, [ready(3)], job=job.job, after=len(all_completed()))
    await projector.catch_up()
    assert await contents(engine) == await folded(store)


# --- rows that Postgres refuses ------------------------------------------------------------------


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> tuple[Projection, ...]:
    """Newer code: no day may cost anything, which one of the projects does not keep to."""
    table = DAILY_STATS.table.to_metadata(MetaData())
    table.append_constraint(CheckConstraint("project_id <> 'odd'", name="never_odd"))
    newer = replace(DAILY_STATS, table=table, version=DAILY_STATS.version + 1)
    projections = tuple(newer if one is DAILY_STATS else one for one in PROJECTIONS)
    monkeypatch.setattr("projector.replay.PROJECTIONS", projections)
    return projections


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_row_that_postgres_refuses_in_a_share_parks_its_job_and_ends_no_backfill(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    jobs: list[JobRef],
    strict: tuple[Projection, ...],
    workers: int,
) -> None:
    odd = await write(store, build(), project="odd")
    await projector.catch_up()
    replayed = await rebuild(engine, only=[strict[-1]], workers=workers)
    assert replayed.parked == 1
    aside = await parked(engine)
    assert aside.keys() == {odd.job}
    assert await scalar(engine, "SELECT sum(queued) FROM daily_stats") == len(jobs)


async def test_a_row_that_postgres_refuses_while_a_backfill_catches_up_parks_its_job(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    jobs: list[JobRef],
    strict: tuple[Projection, ...],
    servers: Servers,
    database_url: str,
) -> None:
    written: list[str] = []

    async def fold() -> None:
        async with another_process(servers, database_url) as other:
            written.append((await write(other.store, build(), project="odd")).job)
            await other.projector.catch_up()

    await rebuild(engine, only=[strict[-1]], on_progress=at_the_first_job(fold))
    assert [*await parked(engine)] == written
    assert await scalar(engine, "SELECT sum(queued) FROM daily_stats") == len(jobs)


# --- rows that cannot be made --------------------------------------------------------------------


@pytest.fixture
def unsteady(monkeypatch: pytest.MonkeyPatch) -> Projection:
    """Newer code: it fails over what is in code of one of the projects."""
    return with_newer_days(monkeypatch, stumbling(DAILY_STATS, "odd"))[-1]


async def test_a_row_that_cannot_be_made_of_a_share_parks_its_job(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    jobs: list[JobRef],
    unsteady: Projection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("projector.shares._FETCHED", 1)
    odd = await write(store, all_completed()[:5], project="odd")
    await projector.catch_up()
    replayed = await rebuild(engine, only=[unsteady])
    assert (replayed.events, replayed.jobs) == (
        await scalar(engine, "SELECT count(*) FROM headrace.events"),
        len(jobs) + 1,
    )
    assert [*await parked(engine)] == [odd.job]
    assert await scalar(engine, "SELECT sum(queued) FROM daily_stats") == len(jobs) + 1


async def test_a_row_that_cannot_be_made_while_a_backfill_catches_up_parks_its_job(
    store: EventStore,
    engine: AsyncEngine,
    jobs: list[JobRef],
    unsteady: Projection,
    servers: Servers,
    database_url: str,
) -> None:
    written: list[str] = []

    async def fold() -> None:
        async with another_process(servers, database_url) as other:
            written.append((await write(other.store, all_completed()[:5], project="odd")).job)
            await other.projector.catch_up()

    await rebuild(engine, only=[unsteady], on_progress=at_the_first_job(fold))
    assert [*await parked(engine)] == written


# --- by itself -----------------------------------------------------------------------------------


async def test_a_running_projector_builds_what_is_new(
    store: EventStore, engine: AsyncEngine, projector: Projector, jobs: list[JobRef], hub: Hub
) -> None:
    await forget(engine, "phases", "daily_stats")

    async def built() -> bool:
        query = "SELECT count(*) FROM headrace.projections"
        return bool(await scalar(engine, query) == len(PROJECTIONS))

    async with anyio.create_task_group() as tasks:
        with capture_logs() as logs:
            tasks.start_soon(projector.run, hub)
            await until(built)
            tasks.cancel_scope.cancel()
    assert await contents(engine) == await folded(store)
    assert not [entry for entry in logs if entry["log_level"] == "error"]


async def test_a_running_projector_folds_on_while_the_archive_is_too_busy_for_a_new_part(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("projector.projector.FIRST_BACKFILL_BACKOFF_S", 0.01)
    last = part(*months(datetime.now(UTC))[-1])[0]
    await execute(engine, f"DROP TABLE headrace.{last}")
    job = await write(store, build())

    async def told() -> bool:
        return any(entry["event"] in ("tables_stuck", "backfill_waits") for entry in logs)

    async def made() -> bool:
        return await scalar(engine, f"SELECT to_regclass('headrace.{last}')") is not None

    async def there() -> bool:
        status = await scalar(engine, f"SELECT status FROM jobs WHERE id = '{job.job}'")
        return bool(status == "ready")

    async with anyio.create_task_group() as tasks:
        with capture_logs() as logs:
            async with engine.connect() as reader:
                await reader.exec_driver_sql("SELECT count(*) FROM headrace.events_other")
                tasks.start_soon(projector.run, hub)
                await until(told)
                await until(there)
            await until(made)
        tasks.cancel_scope.cancel()


async def test_a_backfill_that_fails_is_tried_again_after_longer_and_longer(
    engine: AsyncEngine,
    jobs: list[JobRef],
    projector: Projector,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("projector.projector.FIRST_BACKFILL_BACKOFF_S", 0.001)
    monkeypatch.setattr("projector.projector.LONGEST_BACKFILL_BACKOFF_S", 0.006)
    await forget(engine, "daily_stats")
    await execute(engine, "CREATE VIEW ours AS SELECT * FROM daily_stats")

    async def tried() -> bool:
        return len(waits()) >= 5

    def waits() -> list[float]:
        return [entry["again_in_s"] for entry in logs if entry["event"] == "backfill_waits"]

    async with anyio.create_task_group() as tasks:
        with capture_logs() as logs:
            tasks.start_soon(projector.run, hub)
            await until(tried)
            tasks.cancel_scope.cancel()
    assert waits()[:5] == [0.001, 0.002, 0.004, 0.006, 0.006]


async def test_a_projectors_own_backfill_asks_for_room_on_the_disk(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef], hub: Hub
) -> None:
    await forget(engine, "daily_stats")
    projector = Projector(store, engine, free_bytes=lambda: 1_000)

    async def told() -> bool:
        return any("a rebuild needs about" in str(entry.get("error")) for entry in logs)

    async with anyio.create_task_group() as tasks:
        with capture_logs() as logs:
            tasks.start_soon(projector.run, hub)
            await until(told)
            tasks.cancel_scope.cancel()


async def test_what_a_newer_version_has_made_is_not_remade_by_an_older_one(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    newer = "UPDATE headrace.projections SET version = 99 WHERE name = 'daily_stats'"
    await execute(engine, newer)
    before = await contents(engine)
    for remake in (backfill, rebuild):
        with pytest.raises(ModelNewer, match="daily_stats"):
            await remake(engine)
    assert await contents(engine) == before
