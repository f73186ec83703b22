"""Keeping house: Redis stays small, and nobody who asks can tell what has gone from it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import anyio
import pytest
import structlog
from redis.asyncio import Redis
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    START,
    CommandHandler,
    CommandId,
    EventStore,
    Housekeeper,
    Hub,
    LogUnverified,
    NumberTaken,
    VersionConflict,
    follow,
    housekeeping,
    subscribe,
)
from eventstore.keys import Keys
from eventstore.scripts import Scripts
from projector import Projector, job_by_id, row_of
from schemas import JobRef, UndecodableEvent, fold
from schemas.commands import ExpirePreview
from tests.histories import (
    NOON,
    PROJECT,
    TENANT,
    all_completed,
    build,
    failed,
    queued,
    ready,
    started,
)
from tests.projector.contents import execute
from tests.projector.writing import ONE_PER_PARTITION, write

pytestmark = pytest.mark.both_servers

OURS = ONE_PER_PARTITION.index(TENANT)
KEYS = Keys(OURS)
PATIENCE_S = 30.0
STREAM_LIFE_S = 600.0


@pytest.fixture
def projector(store: EventStore, engine: AsyncEngine) -> Projector:
    return Projector(store, engine)


@dataclass
class Clock:
    """The time that housekeepers go by. The test's events are from the seconds after noon."""

    now: datetime = NOON + timedelta(days=1)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def housekeeper(
    store: EventStore, clock: Clock, *, keep_s: float = 0, keep_events: int = 1_000_000
) -> Housekeeper:
    return Housekeeper(
        store,
        keep_s=keep_s,
        keep_events=keep_events,
        lease_s=60,
        stream_life_s=STREAM_LIFE_S,
        clock=clock,
    )


async def log_ids(store: EventStore) -> list[str]:
    return [entry.position.entry_id for entry in await store.read_log(OURS, None)]


async def expires(redis: Redis, ref: JobRef) -> bool:
    """Whether a job's stream has a time to live, which is the one that was given."""
    left_ms = await redis.pttl(KEYS.job(ref.job))
    assert left_ms == -1 or 0 < left_ms <= STREAM_LIFE_S * 1000
    return bool(left_ms > 0)


async def expire_now(redis: Redis) -> int:
    """Let the time to live of every stream that has one pass; how many there were."""
    keys = [key async for key in redis.scan_iter(KEYS.job("*"))]
    expiring = [key for key in keys if await redis.pttl(key) > 0]
    for key in expiring:
        await redis.pexpire(key, 0)
    return len(expiring)


# --- trimming -------------------------------------------------------------------------------------


async def test_what_is_not_archived_is_not_trimmed(
    store: EventStore, projector: Projector, clock: Clock
) -> None:
    assert await housekeeper(store, clock).trim(OURS) == 0
    await write(store, build())
    assert await housekeeper(store, clock, keep_events=0).trim(OURS) == 0
    await projector.catch_up()
    await write(store, [queued()])
    assert await housekeeper(store, clock, keep_events=0).trim(OURS) == len(build())
    assert await log_ids(store) == [f"1-{len(build()) + 1}"]


async def test_what_is_young_is_kept_and_trimmed_when_it_is_old(
    store: EventStore, projector: Projector, clock: Clock
) -> None:
    await write(store, [queued(), *map(started, range(1, 5))])  # one a second, from noon on
    await projector.catch_up()
    keeper = housekeeper(store, clock, keep_s=60)
    clock.now = NOON + timedelta(seconds=60)
    assert await keeper.trim(OURS) == 0
    clock.now = NOON + timedelta(seconds=63)
    assert await keeper.trim(OURS) == 3
    assert await log_ids(store) == ["1-4", "1-5"]


async def test_of_what_is_young_no_more_than_so_many_are_kept(
    store: EventStore, projector: Projector, clock: Clock
) -> None:
    await write(store, [queued(), *map(started, range(1, 5))])
    await projector.catch_up()
    assert await housekeeper(store, clock, keep_s=1e9, keep_events=2).trim(OURS) == 3
    assert await log_ids(store) == ["1-4", "1-5"]


async def test_more_than_one_batch_is_trimmed_at_once(
    store: EventStore, projector: Projector, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.housekeeping._BATCH", 3)
    await write(store, [queued(), *map(started, range(1, 12))])
    await projector.catch_up()
    assert await housekeeper(store, clock, keep_s=1e9, keep_events=2).trim(OURS) == 10
    assert await log_ids(store) == ["1-11", "1-12"]


async def test_trimming_decodes_nothing_so_what_cannot_be_decoded_does_not_stop_it(
    store: EventStore,
    projector: Projector,
    clock: Clock,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(*_: object) -> None:
        raise UndecodableEvent("JobReady.v9", b"{}", "of a newer version")

    ref = await write(store, build())
    await projector.catch_up()
    monkeypatch.setattr("eventstore.store.from_fields", cannot)
    monkeypatch.setattr("eventstore.archive.decode", lambda *_: cannot(None))
    with pytest.raises(UndecodableEvent):
        await store.read_log(OURS, None)
    assert await housekeeper(store, clock, keep_s=1e9, keep_events=1).trim(OURS) == len(build()) - 1
    assert await redis.xlen(KEYS.log) == 1
    assert await housekeeper(store, clock).trim(OURS) == 1
    assert await expires(redis, ref)


async def test_nothing_is_trimmed_from_a_log_that_was_not_verified_here(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis
) -> None:
    await write(store, build())
    await projector.catch_up()
    await redis.hset(KEYS.meta, "lineage", "another")
    with pytest.raises(LogUnverified):
        await housekeeper(store, clock).trim(OURS)
    assert len(await log_ids(store)) == len(build())


async def test_two_housekeepers_at_once_do_the_work_of_one(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis
) -> None:
    refs = [await write(store, build(number)) for number in range(1, 6)]
    await projector.catch_up()
    cut: list[int] = []

    async def keeps() -> None:
        cut.append(await housekeeper(store, clock).trim(OURS))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(keeps)
    assert sum(cut) == 5 * len(build())
    assert await log_ids(store) == []
    assert all([await expires(redis, ref) for ref in refs])


async def test_a_housekeeper_that_dies_between_reading_and_cutting_leaves_all_to_the_next(
    store: EventStore,
    projector: Projector,
    clock: Clock,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Died(Exception):
        pass

    async def dies(*_: object) -> None:
        raise Died

    ref = await write(store, build())
    await projector.catch_up()
    with monkeypatch.context() as patched:
        patched.setattr(store.scripts.__class__, "__call__", dies)
        with pytest.raises(Died):
            await housekeeper(store, clock).trim(OURS)
    assert len(await log_ids(store)) == len(build())
    assert not await expires(redis, ref)
    assert await housekeeper(store, clock).trim(OURS) == len(build())
    assert await expires(redis, ref)


# --- expiry ---------------------------------------------------------------------------------------


async def test_the_stream_of_a_job_that_has_not_ended_never_expires(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis
) -> None:
    living, ended = await write(store, all_completed()), await write(store, [queued(), failed()])
    await projector.catch_up()
    await housekeeper(store, clock).trim(OURS)
    assert await log_ids(store) == []
    assert not await expires(redis, living)
    assert await expires(redis, ended)


async def test_the_stream_of_a_job_with_events_left_in_the_log_does_not_expire(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis
) -> None:
    ref = await write(store, build())
    await projector.catch_up()
    await CommandHandler(store).handle(ref, ExpirePreview("time-out"))
    await housekeeper(store, clock).trim(OURS)
    assert await log_ids(store) == [f"1-{len(build()) + 1}"]
    assert not await expires(redis, ref)


async def test_a_job_that_speaks_after_its_end_has_its_stream_until_that_is_archived_too(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis
) -> None:
    ref = await write(store, build())
    await projector.catch_up()
    await housekeeper(store, clock).trim(OURS)
    assert await expires(redis, ref)
    await CommandHandler(store, clock=clock).handle(ref, ExpirePreview("time-out"))
    assert not await expires(redis, ref)
    assert await housekeeper(store, clock).trim(OURS) == 0
    await projector.catch_up()
    assert await housekeeper(store, clock).trim(OURS) == 1
    assert await expires(redis, ref)


async def test_a_stream_put_back_for_a_command_that_appends_nothing_expires_again(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis
) -> None:
    history = [*build()[:-1], ready().model_copy(update={"preview_url": None})]
    ref = await write(store, history)
    await projector.catch_up()
    await housekeeper(store, clock).trim(OURS)
    assert await expire_now(redis) == 1
    handled = await CommandHandler(store).handle(ref, ExpirePreview("time-out"), command_id="k-1")
    assert handled.events == ()
    assert await redis.exists(KEYS.job(ref.job))
    assert await expires(redis, ref)


# --- nobody can tell ------------------------------------------------------------------------------


async def answers(store: EventStore, hub: Hub, refs: list[JobRef]) -> dict[str, object]:
    """What every way of reading the log says."""
    handler = CommandHandler(store)
    followed, subscribed = [], []
    with anyio.fail_after(PATIENCE_S):
        for ref in refs:
            history = follow(hub, ref, START)
            followed += [await anext(history) for _ in range(len(await store.read_job(ref)))]
            await history.aclose()
        end = await store.log_end(OURS)
        log = subscribe(hub, partition=OURS)
        subscribed += [await anext(log) for _ in range(end.seq)]
        await log.aclose()
    return {
        "jobs": [await store.read_job(ref) for ref in refs],
        "loaded": [await handler.load(ref) for ref in refs],
        "followed": followed,
        "subscribed": subscribed,
        "numbers": [await store.last_build_number(TENANT, name) for name in (PROJECT, "other")],
        "command": await store.find_command(TENANT, CommandId("k-1", "hash")),
        "end": end,
    }


async def test_everything_that_can_be_asked_is_answered_alike_after_trimming_and_expiry(
    store: EventStore, hub: Hub, projector: Projector, clock: Clock, redis: Redis
) -> None:
    refs = [
        await write(store, build(1)),
        await write(store, build(2)),
        await write(store, [queued(), failed()]),
        await write(store, all_completed()),
    ]
    command, version = CommandId("k-1", "hash"), len(all_completed())
    await store.append(refs[3], PROJECT, [], expected_version=version, command=command)
    before = await answers(store, hub, refs)
    await projector.catch_up()
    await housekeeper(store, clock).trim(OURS)
    assert await answers(store, hub, refs) == before
    assert await expire_now(redis) == 3
    assert await answers(store, hub, refs) == before
    assert before["numbers"] == [2, 0]


async def test_a_job_that_expired_goes_on_and_its_row_follows(
    store: EventStore, projector: Projector, engine: AsyncEngine, clock: Clock, redis: Redis
) -> None:
    ref = await write(store, build())
    await projector.catch_up()
    await housekeeper(store, clock).trim(OURS)
    assert await expire_now(redis) == 1
    handled = await CommandHandler(store).handle(ref, ExpirePreview("time-out"))
    assert [event.version for event in handled.events] == [len(build()) + 1]
    await projector.catch_up()
    job = fold(await store.read_job(ref))
    async with engine.connect() as connection:
        found = await job_by_id(connection, TENANT, ref.job)
    assert job is not None
    assert found is not None
    assert job.preview_url is None
    assert found.model_copy(update={"position": None}) == row_of(job)


# --- a job that is queued again -------------------------------------------------------------------


def made_at(time: datetime) -> str:
    """A job's id as it was made at that time."""
    milliseconds = round(time.timestamp() * 1000)
    return str(UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | 42))


NO_TIME = str(uuid4())
LONG_AGO = made_at(NOON)
TOO_EARLY = made_at(datetime.now(UTC) + timedelta(days=1))


@pytest.mark.parametrize(
    "job", [LONG_AGO, TOO_EARLY, NO_TIME], ids=["long ago", "too early", "no time"]
)
async def test_a_job_queued_again_after_its_stream_expired_is_refused_and_folding_goes_on(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis, job: str
) -> None:
    await write(store, [queued(), failed()], job=job)
    await projector.catch_up()
    await housekeeper(store, clock).trim(OURS)
    assert await expire_now(redis) == 1
    end = await store.log_end(OURS)
    with pytest.raises(VersionConflict) as refused:
        await write(store, [queued()], job=job)
    assert refused.value.actual == 2
    assert await store.log_end(OURS) == end
    await write(store, build())
    assert await projector.catch_up() == len(build())


async def test_a_stream_about_to_expire_outlives_the_job_that_is_queued_again(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis
) -> None:
    ref = await write(store, [queued(), failed()], job=LONG_AGO)
    await projector.catch_up()
    await housekeeper(store, clock).trim(OURS)
    await redis.pexpire(KEYS.job(ref.job), 30_000)
    end = await store.log_end(OURS)
    await write(store, [queued()], job=LONG_AGO)  # the very same event: it is there
    assert await store.log_end(OURS) == end
    assert await redis.pttl(KEYS.job(ref.job)) > 30_000


@pytest.mark.parametrize("job", [LONG_AGO, None], ids=["old", "fresh"])
async def test_only_for_an_old_job_id_is_the_archive_asked(
    store: EventStore, job: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()
    newest_of_job = store.archive.newest_of_job

    async def noted(tenant: str, job: str) -> object:
        asked.append(job)
        return await newest_of_job(tenant, job)

    monkeypatch.setattr(store.archive, "newest_of_job", noted)
    ref = await write(store, [queued()], job=job)
    assert asked == ([ref.job] if job else [])
    assert await log_ids(store) == ["1-1"]


# --- build numbers --------------------------------------------------------------------------------


async def test_a_project_whose_counter_was_dropped_counts_on(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis
) -> None:
    await write(store, build(1))
    await write(store, build(2))
    await projector.catch_up()
    await housekeeper(store, clock).trim(OURS)
    assert await redis.hlen(KEYS.builds) == 0
    with pytest.raises(NumberTaken) as caught:
        await write(store, build(2))
    assert caught.value.last == 2
    await write(store, build(3))
    assert await store.last_build_number(TENANT, PROJECT) == 3


async def test_a_dropped_counter_counts_builds_that_are_not_archived_yet(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis
) -> None:
    await write(store, build(1))
    await projector.catch_up()
    await write(store, build(2))
    await housekeeper(store, clock).trim(OURS)
    assert await redis.hlen(KEYS.builds) == 0
    assert await store.last_build_number(TENANT, PROJECT) == 2


async def test_of_two_that_become_ready_without_a_counter_one_gets_the_number(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis
) -> None:
    running = [await write(store, all_completed()) for _ in range(2)]
    await write(store, build(1))
    await projector.catch_up()
    await housekeeper(store, clock).trim(OURS)
    assert await redis.hlen(KEYS.builds) == 0
    outcomes: list[str] = []

    async def finish(ref: JobRef) -> None:
        try:
            await write(store, [ready(2)], job=ref.job, after=len(all_completed()))
            outcomes.append("ready")
        except NumberTaken as taken:
            outcomes.append(f"taken: {taken.last}")

    async with anyio.create_task_group() as tasks:
        for ref in running:
            tasks.start_soon(finish, ref)
    assert sorted(outcomes) == ["ready", "taken: 2"]


async def test_a_number_that_was_read_before_another_build_is_not_put_back_after_it(
    store: EventStore,
    projector: Projector,
    clock: Clock,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = await write(store, all_completed())
    await write(store, build(1))
    await projector.catch_up()
    await housekeeper(store, clock).trim(OURS)
    call, overtaken = Scripts.__call__, list[bool]()

    async def slowly(self: Scripts, name: str, keys: list[str], args: list[object]) -> object:
        if name == "seed_number" and not overtaken:
            # Somebody else becomes build 2, and that is archived and trimmed, before we write.
            overtaken.append(True)
            await write(store, build(2))
            await projector.catch_up()
            await housekeeper(store, clock).trim(OURS)
            assert await redis.hlen(KEYS.builds) == 0
        return await call(self, name, keys, args)

    monkeypatch.setattr(Scripts, "__call__", slowly)
    with pytest.raises(NumberTaken) as caught:
        await write(store, [ready(2)], job=running.job, after=len(all_completed()))
    assert caught.value.last == 2


# --- the loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("life_s", [59.9, 0, -1])
async def test_a_life_of_streams_shorter_than_an_answer_of_the_archive_holds_is_refused(
    store: EventStore, life_s: float
) -> None:
    with pytest.raises(ValueError, match=f"stream_life_s is {life_s:g}"):
        Housekeeper(store, keep_s=0, keep_events=0, lease_s=60, stream_life_s=life_s)


async def test_keeping_house_outlives_whatever_postgres_answers(
    store: EventStore,
    projector: Projector,
    clock: Clock,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(housekeeping, "EVERY_S", 0.001)
    monkeypatch.setattr(housekeeping, "_PAUSE_AFTER_FAULT_S", 0.001)
    await write(store, build())
    await projector.catch_up()
    await execute(engine, "ALTER TABLE headrace.events RENAME TO lost")
    with structlog.testing.capture_logs() as said:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(housekeeper(store, clock).run)
            with anyio.fail_after(PATIENCE_S):
                while len(said) < 2 * store.partitions:
                    await anyio.lowlevel.checkpoint()
                await execute(engine, "ALTER TABLE headrace.lost RENAME TO events")
                while await log_ids(store):
                    await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    stuck = [one for one in said if one["event"] == "housekeeping_stuck"]
    assert {one["partition"] for one in stuck} == set(range(store.partitions))
    assert all(isinstance(one["exc_info"], ProgrammingError) for one in stuck)


# --- under load -----------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_redis_does_not_grow_with_the_events_that_went_through_it(
    store: EventStore, projector: Projector, clock: Clock, redis: Redis, engine: AsyncEngine
) -> None:
    keeper, projects = housekeeper(store, clock, keep_s=1e9, keep_events=250), 20

    async def jobs(count: int) -> dict[str, int]:
        """So many builds of twelve events, housekeeping now and then; the size of Redis then."""
        for number in range(count):
            project = f"p-{number % projects}"
            last = await store.last_build_number(TENANT, project)
            await write(store, build(last + 1), project=project)
            if number % 25 == 24:
                await projector.catch_up()
                await keeper.trim(OURS)
                await expire_now(redis)
        return {
            "keys": await redis.dbsize(),
            "events": await redis.xlen(KEYS.log),
            "work": await redis.xlen(KEYS.work("normal")),
            "bells": await redis.xlen(KEYS.bell),
            "counters": await redis.hlen(KEYS.builds),
        }

    for _ in range(1_000):
        await redis.xadd(KEYS.bell, {"job": "-", "what": "event"})
    warm = await jobs(50)
    end = await jobs(100)
    assert (await store.log_end(OURS)).seq == 150 * len(build())
    assert max(warm.pop("bells"), end.pop("bells")) < 1_200
    assert end == pytest.approx(warm, rel=0.1, abs=5)
    async with engine.connect() as connection:
        archived = await connection.exec_driver_sql("SELECT count(*) FROM headrace.events")
        assert archived.scalar_one() == 150 * len(build())
