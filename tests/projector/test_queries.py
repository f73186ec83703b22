"""What the read model answers."""

import os
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import EventStore
from projector import (
    Projector,
    UnknownCursor,
    build_by_number,
    job_by_id,
    list_builds,
    list_jobs,
    list_projects,
    living_previews,
    project_by_id,
    row_of,
    stats,
    timeline,
)
from schemas import JobRef, Position, Status, fold
from schemas.events import (
    JobCancelled,
    Known,
    PreviewExpired,
    PreviewPaused,
    PreviewRequested,
    SandboxCreated,
)
from tests.histories import (
    NOON,
    TENANT,
    build,
    failed,
    queued,
    repaired_build,
    started,
)
from tests.projector.contents import execute
from tests.projector.spoiling import spoil
from tests.projector.writing import write

pytestmark = pytest.mark.anyio

NEIGHBOUR = "globex"
"""A tenant in the same partition."""


async def write_queued(store: EventStore, count: int) -> list[str]:
    """So many jobs, the oldest first."""
    return [(await write(store, [queued()])).job for _ in range(count)]


async def ids(connection: AsyncConnection, tenant: str = TENANT, **wanted: Any) -> list[str]:
    """The job ids of a page."""
    return [row.job_id for row in await list_jobs(connection, tenant, **wanted)]


async def test_jobs_are_listed_newest_first_up_to_the_limit(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    written = await write_queued(store, 5)
    await projector.catch_up()
    async with engine.connect() as connection:
        assert await ids(connection) == written[::-1]
        assert await ids(connection, limit=2) == written[:2:-1]


async def test_previews_that_live_are_found_those_first_that_end_first(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    def ending(hours: int) -> list[Known]:
        ends_at = NOON + timedelta(hours=hours)
        return [
            event.model_copy(update={"ends_at": ends_at})
            if isinstance(event, SandboxCreated)
            else event
            for event in build()
        ]

    late = await write(store, ending(3), project="p3")
    early = await write(store, ending(1), tenant=NEIGHBOUR, project="p1")
    waking = await write(store, [*ending(2), PreviewRequested(by="ann")], project="p2")
    kept = PreviewPaused(kept_until=NOON + timedelta(hours=9))
    paused = await write(store, [*ending(4), kept], project="p4")
    await write(store, [*ending(5), PreviewExpired(reason="time-out")], project="p5")
    await write(store, [queued(), started()])
    await projector.catch_up()
    async with engine.connect() as connection:
        assert await living_previews(connection, 9) == [early, waking, late, paused]
        assert await living_previews(connection, 2) == [early, waking]


async def test_pages_neither_skip_nor_repeat_a_job_while_others_are_added(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    written = await write_queued(store, 7)
    await projector.catch_up()
    paged: list[str] = []
    while len(paged) < len(written):
        async with engine.connect() as connection:
            page = await ids(connection, before=paged[-1] if paged else None, limit=3)
        paged += page
        await write_queued(store, 2)
        await write(store, [started()], job=page[0], after=1)
        await projector.catch_up()
    assert paged == written[::-1]


async def test_jobs_are_found_by_project_and_by_status(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    shop_ready = await write(store, build())
    shop_failed = await write(store, [queued(), started(), failed()])
    blog_ready = await write(store, build(), project="blog")
    await projector.catch_up()
    async with engine.connect() as connection:
        assert await ids(connection, project="shop") == [shop_failed.job, shop_ready.job]
        assert await ids(connection, status=Status.READY) == [blog_ready.job, shop_ready.job]
        assert await ids(connection, project="blog", status=Status.FAILED) == []
        assert await ids(connection, project="shop", status=Status.READY) == [shop_ready.job]


async def test_no_tenant_sees_a_job_of_another(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    ours = await write(store, build())
    theirs = await write(store, build(), tenant=NEIGHBOUR)
    await projector.catch_up()
    async with engine.connect() as connection:
        assert await ids(connection) == [ours.job]
        assert await ids(connection, NEIGHBOUR) == [theirs.job]
        assert await ids(connection, "nobody") == []
        with pytest.raises(UnknownCursor, match=theirs.job):
            await ids(connection, before=theirs.job)
        assert await timeline(connection, TENANT, theirs.job) == []
        assert await ids(connection, project="shop", status=Status.READY) == [ours.job]
        assert await job_by_id(connection, TENANT, theirs.job) is None
        assert await job_by_id(connection, NEIGHBOUR, ours.job) is None


async def test_jobs_are_in_the_order_in_which_they_were_queued_whatever_their_ids(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    first, second, third = await write_queued(store, 3)
    await projector.catch_up()
    await execute(
        engine, f"UPDATE jobs SET queued_at = queued_at + interval '1 hour' WHERE id = '{first}'"
    )
    async with engine.connect() as connection:
        assert await ids(connection) == [first, third, second]
        assert await ids(connection, before=first) == [third, second]
        assert await ids(connection, before=third) == [second]


async def test_jobs_are_found_by_the_time_at_which_they_were_queued(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    early, late = await write_queued(store, 2)
    await projector.catch_up()
    await execute(
        engine, f"UPDATE jobs SET queued_at = queued_at + interval '1 hour' WHERE id = '{late}'"
    )
    queued_at = NOON + timedelta(seconds=1)
    later = queued_at + timedelta(hours=1)
    async with engine.connect() as connection:
        assert await ids(connection, since=later) == [late]
        assert await ids(connection, since=queued_at, until=later) == [early]
        assert await ids(connection, until=queued_at) == []


async def test_jobs_are_found_by_tier(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    paid = await write(store, [queued().model_copy(update={"tier": "pro"})])
    free = await write(store, [queued()])
    await projector.catch_up()
    async with engine.connect() as connection:
        assert await ids(connection, tier="pro") == [paid.job]
        assert await ids(connection, tier="free") == [free.job]


@pytest.mark.parametrize(
    ("words", "is_found"),
    [
        ("todo", True),
        ("TODO", True),
        ("peop two", True),
        ("todo-li", True),
        ("ann@example.org", True),
        ("gäste", True),
        ("two cats", False),
        ("odo", False),
        ("  ", True),
        ("!!!", False),
    ],
)
async def test_jobs_are_found_by_beginnings_of_words_of_their_goal(
    store: EventStore, engine: AsyncEngine, projector: Projector, words: str, is_found: bool
) -> None:
    goal = "a Todo-list for two people's Gästebuch (write to ann@example.org)"
    job = await write(store, [queued(goal)])
    await projector.catch_up()
    async with engine.connect() as connection:
        assert await ids(connection, goal=words) == ([job.job] if is_found else [])


@given(
    words=st.text(alphabet=st.one_of(st.sampled_from("'\\&|!:*()<-> \t\0\ud800a"), st.characters()))
)
@example(words="'")
@example(words="\\")
@example(words="a' | b\\")
@settings(
    max_examples=int(os.environ.get("HEADRACE_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_no_words_are_an_operator(
    engine: AsyncEngine, jobs: list[JobRef], words: str
) -> None:
    async with engine.connect() as connection:
        ours = await ids(connection)
        assert await ids(connection, goal=words) in ([], ours)
    assert len(ours) == 3


async def test_a_parked_job_says_so(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    parked, whole = await spoil(store), await write(store, build(2))
    await projector.catch_up()
    async with engine.connect() as connection:
        assert {row.job_id: row.parked for row in await list_jobs(connection, TENANT)} == {
            parked.job: True,
            whole.job: False,
        }
        found = await job_by_id(connection, TENANT, parked.job)
        assert found is not None
        assert (found.parked, found.version) == (True, 3)


async def test_a_timeline_has_every_attempt_and_round_in_order(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, repaired_build())
    await projector.catch_up()
    async with engine.connect() as connection:
        found = await timeline(connection, TENANT, job.job)
    assert [(row.attempt, row.round, row.phase, row.outcome) for row in found] == [
        (1, 1, "scaffold", "completed"),
        (2, 1, "code", "completed"),
        (2, 1, "deps", "completed"),
        (2, 1, "checks", "failed"),
        (2, 2, "code", "completed"),
        (2, 2, "deps", "completed"),
        (2, 2, "checks", "completed"),
    ]
    assert found[0].duration_ms == 7
    assert found[0].started_at < found[1].started_at


async def test_projects_and_builds_are_listed_in_pages_and_found_one_by_one(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    for project in ("a", "b", "c"):
        for number in range(1, 4):
            await write(store, build(number), project=project)
    await write(store, build(), tenant=NEIGHBOUR, project="theirs")
    await projector.catch_up()
    async with engine.connect() as connection:
        names = [row.project_id for row in await list_projects(connection, TENANT)]
        assert names == ["a", "b", "c"]
        behind = await list_projects(connection, TENANT, behind="a", limit=1)
        assert [(row.project_id, row.latest_build, row.ready) for row in behind] == [("b", 3, 3)]
        assert await project_by_id(connection, TENANT, "theirs") is None
        numbers = [row.number for row in await list_builds(connection, TENANT, "a")]
        assert numbers == [3, 2, 1]
        before = await list_builds(connection, TENANT, "a", before=3, limit=1)
        assert [(row.number, row.version) for row in before] == [(2, "build_v0_2")]
        assert await build_by_number(connection, TENANT, "a", 2) == before[0]
        assert await build_by_number(connection, TENANT, "theirs", 1) is None


async def test_stats_count_days_and_measure_phases(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write(store, build())
    await write(store, repaired_build(2))
    await write(store, [queued(), started(), failed()])
    await write(store, [queued(), JobCancelled(by="ann")])
    await write(store, build(), project="blog")
    await write(store, build(), tenant=NEIGHBOUR)
    await projector.catch_up()
    day = NOON.date()
    async with engine.connect() as connection:
        found = await stats(connection, TENANT, since=day, until=day)
        shop = await stats(connection, TENANT, since=day, until=day, project="shop")
        none = await stats(connection, TENANT, since=date(2020, 1, 1), until=day - timedelta(1))
    assert (found.queued, found.ready, found.failed, found.cancelled) == (5, 3, 1, 1)
    assert found.success_rate == 0.75
    assert (found.takeovers, found.repairs) == (1, 1)
    assert (found.input_tokens, found.output_tokens, found.cost_usd) == (140, 42, 3.5)
    assert (found.queue_wait.started, found.queue_wait.p50_ms) == (4, 1000)
    assert {phase.phase: (phase.completed, phase.p95_ms) for phase in found.phases} == {
        "scaffold": (3, 7),
        "code": (4, 7),
        "deps": (4, 7),
        "checks": (3, 7),
    }
    assert [(row.project_id, row.queued, row.queue_wait_ms) for row in found.days] == [
        ("blog", 1, 1000),
        ("shop", 4, 1000),
    ]
    assert (shop.queued, shop.success_rate, len(shop.days)) == (4, 2 / 3, 1)
    assert (none.queued, none.success_rate, none.queue_wait.p50_ms) == (0, None, None)
    assert not none.phases
    assert not none.days


async def test_a_job_that_is_not_there_is_none(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await job_by_id(connection, TENANT, "nobody") is None


async def test_a_row_that_is_read_is_the_row_that_was_foretold(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    histories: list[list[Known]] = [[queued()], build(), [queued(), started(), failed()]]
    end = 0
    for history in histories:
        job = await write(store, history)
        await projector.catch_up()
        state = fold(await store.read_job(job))
        assert state is not None
        end += len(history)
        async with engine.connect() as connection:
            found = await job_by_id(connection, TENANT, job.job)
            assert found is not None
            assert found.position == str(Position(store.partition(TENANT), 1, end))
            assert found.model_copy(update={"position": None}) == row_of(state)
            assert (await list_jobs(connection, TENANT, limit=1)) == [found]
