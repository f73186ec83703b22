"""What becomes of a parked job once a person has looked at it."""

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import (
    Projector,
    discard,
    parked_jobs,
    rebuild,
    retry,
    verify,
)
from projector.errors import JobDetached, NotParked, ReplayRunning
from schemas import JobRef
from schemas.events import PreviewExpired
from service.embedded import Servers
from tests.histories import build, repaired_build, started
from tests.projector.contents import contents, execute, folded, scalar
from tests.projector.processes import another_process, at_the_first_job, blocked_backend
from tests.projector.spoiling import (
    assert_only_parked,
    mend,
    parked,
    refuse_job,
    refuse_no_more,
    spoil,
)
from tests.projector.writing import forge, write

pytestmark = pytest.mark.anyio

EXPIRED = PreviewExpired(reason="time-out")


async def states(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return [one.state for one in await parked_jobs(connection)]


async def refused(
    store: EventStore, engine: AsyncEngine, projector: Projector, *, up_to: int = len(build())
) -> JobRef:
    """A job that is parked because Postgres refuses its rows, in the midst of others."""
    await write(store, build())
    job = await write(store, repaired_build(2)[:up_to])
    await write(store, build(), tenant="globex")
    await refuse_job(engine, job.job)
    await projector.catch_up()
    assert (await parked(engine)).keys() == {job.job}
    return job


# --- retrying ------------------------------------------------------------------------------------


async def test_a_retry_after_the_cause_is_gone_makes_the_rows_of_a_clean_fold(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await refused(store, engine, projector)
    await refuse_no_more(engine)
    assert await retry(engine, job.job) is None
    assert await contents(engine) == await folded(store)
    assert (await verify(engine))[1] == []


async def test_a_retry_takes_along_what_has_queued_behind(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await refused(store, engine, projector, up_to=9)
    for version, payload in enumerate(repaired_build(2)[9:], start=9):
        await write(store, [payload], job=job.job, after=version)
        await projector.catch_up()
    await refuse_no_more(engine)
    assert await retry(engine, job.job) is None
    assert await contents(engine) == await folded(store)


async def test_a_projector_goes_on_with_a_job_where_a_retry_has_left_it(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write(store, build())
    job = await write(store, repaired_build(2)[:9])
    await projector.catch_up()
    await refuse_job(engine, job.job)
    await write(store, repaired_build(2)[9:11], job=job.job, after=9)
    await projector.catch_up()
    await refuse_no_more(engine)
    assert await retry(engine, job.job) is None
    await write(store, repaired_build(2)[11:], job=job.job, after=11)
    await projector.catch_up()
    assert await contents(engine) == await folded(store)


async def test_a_payload_that_can_be_decoded_again_is_folded(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await spoil(store, after=3)
    await projector.catch_up()
    await mend(engine, job.job, 4)
    assert await retry(engine, job.job) is None
    assert await parked(engine) == {}
    assert await scalar(engine, "SELECT status FROM jobs") == "ready"
    assert await scalar(engine, "SELECT cost_usd FROM projects") == 1
    assert (await verify(engine))[1] == []


async def test_a_build_number_that_is_free_again_is_taken(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write(store, build())
    await projector.catch_up()
    for table, column in (("jobs", "build_number"), ("builds", "number")):
        await execute(engine, f"UPDATE {table} SET {column} = 2")
    job = await write(store, build(2))
    await projector.catch_up()
    assert (await parked(engine)).keys() == {job.job}
    for table, column in (("jobs", "build_number"), ("builds", "number")):
        await execute(engine, f"UPDATE {table} SET {column} = 1 WHERE {column} = 2")
    assert await retry(engine, job.job) is None
    assert await contents(engine) == await folded(store)


async def test_a_retry_that_fails_again_leaves_everything_as_it_is(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await refused(store, engine, projector)
    before, where = await contents(engine), await parked(engine)
    for _ in range(2):
        again = await retry(engine, job.job)
        assert again is not None
        assert (again.job, again.position) == (job.job, where[job.job])
        assert await contents(engine) == before
    await assert_only_parked(store, engine, job)


async def test_a_retry_gets_as_far_as_the_next_cause(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await spoil(store, after=3)
    await projector.catch_up()
    await execute(
        engine,
        f"UPDATE headrace.events SET data = '{{'::bytea WHERE job = '{job.job}' AND version = 8",
    )
    await mend(engine, job.job, 4)
    again = await retry(engine, job.job)
    assert again is not None
    assert again.version == 8
    assert await scalar(engine, "SELECT version FROM jobs") == 7
    assert (await parked(engine))[job.job] == again.position
    await mend(engine, job.job, 8)
    assert await retry(engine, job.job) is None
    assert (await verify(engine))[1] == []


async def test_only_what_is_parked_can_be_retried_or_discarded(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, build())
    await projector.catch_up()
    before = await contents(engine)
    for act in (retry, discard):
        with pytest.raises(NotParked, match=job.job):
            await act(engine, job.job)
    assert await contents(engine) == before


async def test_a_job_whose_part_is_detached_stays_parked(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await refused(store, engine, projector)
    await refuse_no_more(engine)
    part = await scalar(
        engine,
        f"SELECT tableoid::regclass::text FROM headrace.events WHERE job = '{job.job}' LIMIT 1",
    )
    bounds = await scalar(
        engine,
        f"SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = '{part}'::regclass",
    )
    await execute(engine, f"ALTER TABLE headrace.events DETACH PARTITION {part}")
    before = await contents(engine)
    with pytest.raises(JobDetached, match=job.job):
        await retry(engine, job.job)
    assert await contents(engine) == before
    assert (await parked(engine)).keys() == {job.job}
    await execute(engine, f"ALTER TABLE headrace.events ATTACH PARTITION {part} {bounds}")
    assert await retry(engine, job.job) is None
    assert await contents(engine) == await folded(store)


# --- who comes behind a retry --------------------------------------------------------------------


async def test_the_projector_that_parked_a_job_goes_on_with_it_after_a_retry(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await refused(store, engine, projector)
    await refuse_no_more(engine)
    await retry(engine, job.job)
    rest = repaired_build(2)[len(build()) :]
    await write(store, rest, job=job.job, after=len(build()))
    assert await projector.catch_up() == len(rest)
    assert await contents(engine) == await folded(store)


async def test_a_projector_goes_on_with_a_job_that_a_rebuild_parked_and_a_retry_brought_back(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, build()[:6])
    await projector.catch_up()  # it remembers the job as of version 6
    await execute(engine, "UPDATE headrace.events SET data = '{'::bytea WHERE version = 4")
    assert (await rebuild(engine)).parked == 1
    for version in (6, 7):
        await write(store, build()[version : version + 1], job=job.job, after=version)
        assert await projector.catch_up() == 1
    await assert_only_parked_in_archive(engine, job, version=3)
    await mend(engine, job.job, 4)
    assert await retry(engine, job.job) is None
    await write(store, build()[8:], job=job.job, after=8)
    await projector.catch_up()
    assert await contents(engine) == await folded(store)


async def assert_only_parked_in_archive(engine: AsyncEngine, job: JobRef, version: int) -> None:
    """The job's row is as of `version`, and `verify` takes that for right."""
    assert await scalar(engine, f"SELECT version FROM jobs WHERE id = '{job.job}'") == version
    replayed, differences = await verify(engine)
    assert (replayed.parked, differences) == (1, [])


async def test_a_job_that_is_parked_while_a_rebuild_folds_is_folded_up_to_there(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    servers: Servers,
    database_url: str,
) -> None:
    spoilt = repaired_build(2)
    await write(store, build())
    job = await write(store, spoilt[:4])
    await projector.catch_up()
    await write(store, spoilt[4:9], job=job.job, after=4)
    await forge(store, spoilt[10:], job=job.job, after=10)  # version 10 is missing

    async def fold_and_park() -> None:
        async with another_process(servers, database_url) as other:
            await other.projector.catch_up()

    replayed = await rebuild(engine, on_progress=at_the_first_job(fold_and_park))
    assert replayed.parked == 1
    assert await scalar(engine, f"SELECT version FROM jobs WHERE id = '{job.job}'") == 9
    await assert_only_parked(store, engine, job)


async def test_a_retry_waits_for_a_batch_under_way_and_takes_along_what_it_archived(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    servers: Servers,
    database_url: str,
) -> None:
    job = await refused(store, engine, projector)
    await refuse_no_more(engine)
    rest = repaired_build(2)[len(build()) :]
    await write(store, rest, job=job.job, after=len(build()))
    async with (
        another_process(servers, database_url) as other,
        anyio.create_task_group() as tasks,
        other.engine.begin() as holding,
    ):
        await holding.exec_driver_sql("LOCK TABLE headrace.events IN SHARE MODE")
        tasks.start_soon(projector.catch_up)
        await blocked_backend(other.engine)
        tasks.start_soon(retry, engine, job.job)
        await blocked_backend(other.engine, 2)
    assert await parked(engine) == {}
    assert await contents(engine) == await folded(store)


async def test_a_retry_beside_a_rebuild_is_refused(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    servers: Servers,
    database_url: str,
) -> None:
    job = await refused(store, engine, projector)
    await refuse_no_more(engine)  # a swap would lose the trigger, and refuses to
    refusals: list[ReplayRunning] = []

    async def try_it() -> None:
        async with another_process(servers, database_url) as other:
            with pytest.raises(ReplayRunning) as caught:
                await retry(other.engine, job.job)
            refusals.append(caught.value)

    await rebuild(engine, on_progress=at_the_first_job(try_it))
    assert len(refusals) == 1
    await assert_only_parked(store, engine, job)


# --- discarding ----------------------------------------------------------------------------------


async def test_a_discarded_job_stays_as_it_is_for_good(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await refused(store, engine, projector)
    await refuse_no_more(engine)
    await discard(engine, job.job)
    assert await states(engine) == ["discarded"]
    await write(store, [started(3)], job=job.job, after=len(build()))
    assert await projector.catch_up() == 1
    await assert_only_parked(store, engine, job)
    before = await contents(engine)
    assert (await rebuild(engine)).parked == 1
    assert await contents(engine) == before
    assert (await verify(engine))[1] == []


async def test_a_job_is_discarded_once(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await refused(store, engine, projector)
    await discard(engine, job.job)
    with pytest.raises(NotParked):
        await discard(engine, job.job)


async def test_a_discarded_job_may_come_back(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await refused(store, engine, projector)
    await refuse_no_more(engine)
    await discard(engine, job.job)
    assert await retry(engine, job.job) is None
    assert await contents(engine) == await folded(store)


async def test_a_ready_job_that_is_parked_behind_its_end_keeps_its_build(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, build())
    await projector.catch_up()
    await forge(store, [EXPIRED], job=job.job, after=len(build()) + 1)
    await projector.catch_up()
    assert (await parked(engine)).keys() == {job.job}
    assert await scalar(engine, "SELECT preview FROM builds") == "running"
    await assert_only_parked(store, engine, job)
