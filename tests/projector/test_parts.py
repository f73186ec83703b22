"""The archive in parts by month: where jobs land, and what happens when a part is taken away."""

from datetime import UTC, datetime

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore, Housekeeper, NumberTaken
from eventstore.parts import make_parts, months
from projector import Projector, rebuild, verify
from projector.errors import ArchiveShort
from schemas import JobRef
from tests.histories import PROJECT, TENANT, build, queued, started
from tests.projector.contents import contents, execute, folded, scalar
from tests.projector.spoiling import parked
from tests.projector.writing import forge, write

pytestmark = pytest.mark.anyio

MARCH = datetime(2031, 3, 14, tzinfo=UTC)


def job_of(moment: datetime) -> str:
    """A job id that was made then."""
    digits = f"{int(moment.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000001"


async def part_of(engine: AsyncEngine, job: str) -> str:
    """The part that holds all of a job's events."""
    return str(
        await scalar(
            engine,
            "SELECT DISTINCT relname FROM headrace.events JOIN pg_class "
            f"ON pg_class.oid = events.tableoid WHERE job = '{job}'",
        )
    )


async def parts(engine: AsyncEngine) -> set[str]:
    names = "SELECT array_agg(inhrelid::regclass::text) FROM pg_inherits"
    of_events = f"{names} WHERE inhparent = 'headrace.events'::regclass"
    return set(await scalar(engine, of_events))


# --- where jobs land -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (datetime(2031, 3, 1, tzinfo=UTC), "events_2031_03"),
        (datetime(2031, 3, 31, 23, 59, 59, 999_000, tzinfo=UTC), "events_2031_03"),
        (datetime(2031, 4, 1, tzinfo=UTC), "events_2031_04"),
        (datetime(2031, 6, 30, tzinfo=UTC), "events_2031_06"),
        (datetime(2031, 7, 1, tzinfo=UTC), "events_other"),
        (datetime(2025, 5, 5, tzinfo=UTC), "events_before"),
        (datetime(2023, 12, 31, tzinfo=UTC), "events_other"),
    ],
)
async def test_a_job_lands_in_the_part_of_the_month_in_which_it_was_made(
    store: EventStore, engine: AsyncEngine, projector: Projector, made: datetime, part: str
) -> None:
    await make_parts(engine, now=MARCH)
    job = await write(store, build(), job=job_of(made))
    await projector.catch_up()
    assert await part_of(engine, job.job) == part
    assert await contents(engine) == await folded(store)


async def test_an_odd_id_lands_in_a_part_of_its_own(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    odd = ["ffffffff-ffff-4fff-bfff-ffffffffffff", "00000000-0000-0000-0000-000000000001"]
    for job in odd:
        await forge(store, [queued(), started()], job=job)
    await projector.catch_up()
    assert {await part_of(engine, job) for job in odd} == {"events_other"}
    assert await parked(engine) == {}
    assert (await verify(engine))[1] == []


async def test_a_job_that_ends_in_another_month_stays_in_its_part(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await make_parts(engine, now=MARCH)
    job = await write(store, build()[:5], job=job_of(datetime(2031, 3, 31, 23, 59, tzinfo=UTC)))
    await projector.catch_up()
    await write(store, build()[5:], job=job.job, after=5)
    await projector.catch_up()
    assert await part_of(engine, job.job) == "events_2031_03"
    assert await contents(engine) == await folded(store)


# --- making parts --------------------------------------------------------------------------------


def test_a_year_ends_in_the_middle_of_the_months_to_come() -> None:
    assert months(datetime(2031, 11, 30, tzinfo=UTC)) == [
        (2031, 11),
        (2031, 12),
        (2032, 1),
        (2032, 2),
    ]


async def test_parts_are_made_ahead_and_once(engine: AsyncEngine) -> None:
    before = await parts(engine)
    made = await make_parts(engine, now=MARCH)
    assert made == ["events_2031_03", "events_2031_04", "events_2031_05", "events_2031_06"]
    assert await make_parts(engine, now=MARCH) == []
    assert await make_parts(engine, now=datetime(2031, 4, 1, tzinfo=UTC)) == ["events_2031_07"]
    assert await parts(engine) == before | {
        f"headrace.{name}" for name in (*made, "events_2031_07")
    }


async def test_the_parts_of_today_are_there_after_migrating(engine: AsyncEngine) -> None:
    assert await make_parts(engine) == []


# --- taking a part away --------------------------------------------------------------------------


@pytest.fixture
async def detached(store: EventStore, engine: AsyncEngine, projector: Projector) -> JobRef:
    """A job of a month whose part was detached, and one of today."""
    await make_parts(engine, now=MARCH)
    old = await write(store, build(), job=job_of(MARCH))
    await write(store, build(2))
    await projector.catch_up()
    await execute(engine, "ALTER TABLE headrace.events DETACH PARTITION headrace.events_2031_03")
    return old


async def test_without_an_old_part_the_read_model_and_new_jobs_go_on(
    store: EventStore, engine: AsyncEngine, projector: Projector, detached: JobRef
) -> None:
    before = await contents(engine)
    await write(store, build(3))
    assert await projector.catch_up() == len(build())
    live = await contents(engine)
    assert len(live["jobs"]) == len(before["jobs"]) + 1
    assert await parked(engine) == {}


async def test_without_an_old_part_there_is_no_rebuild_until_it_is_attached_again(
    store: EventStore, engine: AsyncEngine, detached: JobRef
) -> None:
    before = await contents(engine)
    for replay in (rebuild, verify):
        with pytest.raises(ArchiveShort, match="attach the missing parts"):
            await replay(engine)
    assert await contents(engine) == before
    first, last = job_of(datetime(2031, 3, 1, tzinfo=UTC)), job_of(datetime(2031, 4, 1, tzinfo=UTC))
    await execute(
        engine,
        "ALTER TABLE headrace.events ATTACH PARTITION headrace.events_2031_03 "
        f"FOR VALUES FROM ('{first[:13]}') TO ('{last[:13]}')",
    )
    await rebuild(engine)
    assert await contents(engine) == await folded(store)


async def test_a_project_counts_on_when_the_part_with_its_newest_build_is_detached(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await make_parts(engine, now=MARCH)
    await write(store, build(1))
    await write(store, build(2), job=job_of(MARCH))
    await projector.catch_up()
    await Housekeeper(store, keep_s=0, keep_events=1, lease_s=1).trim(store.partition(TENANT))
    assert await store.redis.hlen(store.keys(TENANT).builds) == 0
    await execute(engine, "ALTER TABLE headrace.events DETACH PARTITION headrace.events_2031_03")
    assert await store.last_build_number(TENANT, PROJECT) == 2
    with pytest.raises(NumberTaken):
        await write(store, build(2))
    await write(store, build(3))


async def test_jobs_that_came_before_the_part_of_their_month_move_into_it(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    early = await write(store, build(), job=job_of(MARCH))
    other = await write(store, build(2), job=job_of(datetime(2030, 1, 1, tzinfo=UTC)))
    await projector.catch_up()
    assert await part_of(engine, early.job) == "events_other"
    await make_parts(engine, now=MARCH)
    assert await part_of(engine, early.job) == "events_2031_03"
    assert await part_of(engine, other.job) == "events_other"
    await write(store, [started(2)], job=early.job, after=len(build()))
    await projector.catch_up()
    assert await contents(engine) == await folded(store)
    assert (await verify(engine))[1] == []


async def test_many_may_make_parts_at_once(engine: AsyncEngine) -> None:
    made: list[str] = []

    async def make() -> None:
        made.extend(await make_parts(engine, now=MARCH))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(make)
    assert sorted(made) == [f"events_2031_0{month}" for month in (3, 4, 5, 6)]
