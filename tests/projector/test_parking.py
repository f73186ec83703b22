"""A job that cannot be folded stands aside, and nothing else notices."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import Projector, parked_jobs, rebuild, verify
from projector.projection import Row
from projector.projections import DAILY_STATS, JOBS, PROJECTIONS
from projector.projections.jobs import job_row
from schemas import Job, JobRef, Phase, Position, Status
from schemas.events import Known
from tests.histories import TENANT, build, completed, queued, repaired_build, started
from tests.projector.contents import contents, execute, scalar
from tests.projector.spoiling import (
    assert_only_parked,
    damaged,
    enormous,
    parked,
    refuse_job,
    refuse_no_more,
    spoil,
    stumbling,
)
from tests.projector.writing import ONE_PER_PARTITION, forge, write

pytestmark = pytest.mark.anyio

OURS = ONE_PER_PARTITION.index(TENANT)
Spoil = Callable[[EventStore, AsyncEngine], Awaitable[JobRef]]


async def undecodable(store: EventStore, _: AsyncEngine) -> JobRef:
    return await spoil(store, after=3)


async def undecodable_first(store: EventStore, _: AsyncEngine) -> JobRef:
    return await forge(store, [damaged(), started()])


async def with_a_hole(store: EventStore, _: AsyncEngine) -> JobRef:
    ref = await forge(store, build()[:3])
    return await forge(store, build()[4:], job=ref.job, after=4)


async def without_a_beginning(store: EventStore, _: AsyncEngine) -> JobRef:
    return await forge(store, build()[1:], after=1)


async def begun_twice(store: EventStore, _: AsyncEngine) -> JobRef:
    ref = await forge(store, [queued(), started()])
    return await forge(store, [queued(), started()], job=ref.job)


async def begun_with_something_else(store: EventStore, _: AsyncEngine) -> JobRef:
    return await forge(store, [started(), started(2)])


async def numbered_twice(store: EventStore, _: AsyncEngine) -> JobRef:
    await forge(store, build(7))
    return await forge(store, [*build(7), started()])


async def too_many_tokens(store: EventStore, _: AsyncEngine) -> JobRef:
    history = [*build()[:3], enormous(build()[3]), *build()[4:]]
    return await forge(store, history)


async def too_many_attempts(store: EventStore, _: AsyncEngine) -> JobRef:
    return await forge(store, [queued(), enormous(started()), *build()[2:]])


async def too_dear(store: EventStore, _: AsyncEngine) -> JobRef:
    dear = completed(Phase.SCAFFOLD).model_copy(update={"cost_usd": 1e300})
    return await forge(store, [*build()[:3], dear, *build()[4:]])


async def refused(store: EventStore, engine: AsyncEngine) -> JobRef:
    ref = await forge(store, build(3))
    await refuse_job(engine, ref.job)
    return ref


CAUSES: list[tuple[Spoil, int, str]] = [
    (undecodable, 4, "PhaseCompleted cannot be decoded"),
    (undecodable_first, 1, "PhaseCompleted cannot be decoded"),
    (with_a_hole, 5, "version 4 expected, 5 found"),
    (without_a_beginning, 2, "version 1 expected, 2 found"),
    (begun_twice, 1, "version 3 expected, 1 found"),
    (begun_with_something_else, 1, "version 1 expected, 1 found"),
    (numbered_twice, len(build()), "build_number"),
    (too_many_tokens, 4, "out of int64 range"),
    (too_many_attempts, 2, "out of int32 range"),
    (too_dear, 4, "numeric field overflow"),
    (refused, 3, "refused by a trigger"),
]
"""What spoils a job, the version at which it is parked, and why."""

EACH_CAUSE = pytest.mark.parametrize(
    ("spoilt", "version", "error"), CAUSES, ids=[spoil.__name__ for spoil, _, _ in CAUSES]
)


@EACH_CAUSE
async def test_a_job_that_cannot_be_folded_is_parked_and_all_others_go_on(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    spoilt: Spoil,
    version: int,
    error: str,
) -> None:
    await write(store, build())
    other = await write(store, repaired_build(2)[:9])
    job = await spoilt(store, engine)
    await write(store, repaired_build(2)[9:], job=other.job, after=9)
    await write(store, build(), tenant="globex")  # in the same partition
    events = (await store.log_end(OURS)).seq
    assert await projector.fold_batch(OURS) == events
    async with engine.connect() as connection:
        (one,) = await parked_jobs(connection)
    assert (one.job_id, one.tenant, one.state) == (job.job, TENANT, "parked")
    assert one.version == version
    assert error in one.error
    await assert_only_parked(store, engine, job)


async def test_a_job_of_which_a_row_cannot_be_made_is_parked_and_all_others_go_on(
    store: EventStore, engine: AsyncEngine
) -> None:
    projections = [stumbling(one, "odd") if one is DAILY_STATS else one for one in PROJECTIONS]
    await write(store, build())
    history = build()[:5]  # the last one has it enter code
    odd = await write(store, history, project="odd")
    await write(store, repaired_build(2))
    await Projector(store, engine, projections).catch_up()
    async with engine.connect() as connection:
        (one,) = await parked_jobs(connection)
    assert (one.job_id, one.version) == (odd.job, 5)
    assert "daily_stats: ZeroDivisionError: no seats" in one.error
    await assert_only_parked(store, engine, odd)


async def test_a_row_that_differs_of_a_job_that_is_parked_for_its_projection_is_told(
    store: EventStore, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(job: Job, position: Position) -> Row:
        if job.status is Status.CODE:
            raise ZeroDivisionError("no seats")
        return job_row(job, position)

    projections = [replace(one, of_job=stumble) if one is JOBS else one for one in PROJECTIONS]
    monkeypatch.setattr("projector.replay.PROJECTIONS", projections)
    job = await write(store, build()[:5])  # the last one has it enter code
    await Projector(store, engine, projections).catch_up()
    assert (await verify(engine))[1] == []
    await execute(engine, "UPDATE jobs SET goal = 'another'")
    (difference,) = (await verify(engine))[1]
    assert (difference.key, difference.column) == ((job.job,), "goal")
    assert "JobQueued" in str(difference)


@EACH_CAUSE
async def test_a_parked_job_is_no_difference_and_a_rebuild_leaves_it_parked(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    spoilt: Spoil,
    version: int,
    error: str,
) -> None:
    await write(store, build())
    job = await spoilt(store, engine)
    await projector.catch_up()
    before = await contents(engine)
    replayed, differences = await verify(engine)
    assert (replayed.parked, differences) == (1, [])
    if spoilt is refused:
        await refuse_no_more(engine)  # a swap would lose the trigger, and refuses to
    replayed = await rebuild(engine)
    assert (replayed.parked, replayed.differing) == (1, ())
    assert await contents(engine) == before
    await assert_only_parked(store, engine, job)


async def test_later_events_of_a_parked_job_wait_behind_it(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    history = build()
    job = await write(store, [*history[:3], damaged()])
    await projector.catch_up()
    where = await parked(engine)
    for version, payload in enumerate(history[4:], start=4):
        await write(store, [payload], job=job.job, after=version)
        assert await projector.catch_up() == 1
    assert await parked(engine) == where
    assert await scalar(engine, f"SELECT version FROM jobs WHERE id = '{job.job}'") == 3
    await assert_only_parked(store, engine, job)


async def test_whichever_projector_comes_next_leaves_a_parked_job_alone(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, [*build()[:3], damaged()])
    await projector.catch_up()
    await write(store, build()[4:], job=job.job, after=4)
    assert await Projector(store, engine).catch_up() == len(build()) - 4
    await assert_only_parked(store, engine, job)


async def test_many_jobs_of_one_batch_may_be_parked(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    spoilt = [await undecodable(store, engine), await with_a_hole(store, engine)]
    await write(store, build(2))
    spoilt += [await too_many_attempts(store, engine), await numbered_twice(store, engine)]
    await write(store, build(), tenant="globex")
    assert await projector.fold_batch(OURS) == (await store.log_end(OURS)).seq
    await assert_only_parked(store, engine, *spoilt)


async def test_a_job_is_parked_where_postgres_refuses_it_and_not_before(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    history: list[Known] = [*build(7)]
    await forge(store, history)
    job = await forge(store, history)
    await projector.catch_up()
    at = (await parked(engine))[job.job]
    assert at.seq == 2 * len(history)
    query = f"SELECT status FROM jobs WHERE id = '{job.job}'"
    assert await scalar(engine, query) == "checks"
    assert await scalar(engine, "SELECT ready FROM projects") == 1


async def test_a_fault_of_the_database_parks_nobody(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write(store, build())
    await execute(engine, "ALTER TABLE phases RENAME COLUMN outcome TO result")
    with pytest.raises(Exception, match="outcome"):
        await projector.fold_batch(OURS)
    await execute(engine, "ALTER TABLE phases RENAME COLUMN result TO outcome")
    assert await projector.fold_batch(OURS) == len(build())
    await assert_only_parked(store, engine)
