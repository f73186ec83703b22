"""Following a job over whatever happens to its stream, its server, and the bells."""

import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import anyio
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    START,
    Archive,
    CommandHandler,
    EventStore,
    Hub,
    JobEntry,
    RedisUnavailable,
    Reset,
    connect_redis,
    follow,
    following,
    open_log,
)
from eventstore.connection import MAX_CONNECTIONS
from projector import Projector
from schemas import JobRef
from schemas.commands import ExpirePreview
from service.embedded import Servers
from tests.eventstore.killable import KillableServer
from tests.histories import TENANT, build, queued, started
from tests.logs import PARTITIONS
from tests.projector.writing import ONE_PER_PARTITION, write

OURS = ONE_PER_PARTITION.index(TENANT)
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def only_bells_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not woken sleeps longer than any test lasts."""
    monkeypatch.setattr(following, "LOOK_AGAIN_S", 3_600.0)


@pytest.fixture
def projector(store: EventStore, engine: AsyncEngine) -> Projector:
    return Projector(store, engine)


async def five_events(store: EventStore) -> JobRef:
    return await write(store, [queued(), *map(started, range(1, 5))])


async def append(store: EventStore, ref: JobRef, *, after: int) -> None:
    await write(store, [started(after)], job=ref.job, after=after)


async def expire(store: EventStore, ref: JobRef) -> None:
    """What the time to live does to a job's stream in the end."""
    assert await store.redis.delete(store.keys(ref.tenant).job(ref.job)) == 1


async def take(hub: Hub, ref: JobRef, count: int, after: str = START) -> list[JobEntry]:
    """The next `count` entries that a follower behind `after` is given."""
    taken: list[JobEntry] = []
    following_it = follow(hub, ref, after)
    with anyio.fail_after(PATIENCE_S):
        async for entry in following_it:
            taken.append(entry)
            if len(taken) == count:
                break
    await following_it.aclose()
    return taken


def ids(taken: list[JobEntry]) -> list[str]:
    return ["reset" if isinstance(entry, Reset) else entry.id for entry in taken]


def versions(first: int, last: int) -> list[str]:
    return [f"{version}-0" for version in range(first, last + 1)]


# --- expiry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 256])
async def test_a_follower_misses_nothing_of_a_stream_that_expires_and_goes_on(
    store: EventStore,
    hub: Hub,
    projector: Projector,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    monkeypatch.setattr(following, "_BATCH", batch)
    ref = await five_events(store)
    seen: list[JobEntry] = []
    following_it = follow(hub, ref)
    with anyio.fail_after(PATIENCE_S):
        async for entry in following_it:
            seen.append(entry)
            if entry.id == "3-0":
                await projector.catch_up()
                await expire(store, ref)
            if entry.id == "5-0":
                await append(store, ref, after=5)
            if entry.id == "6-0":
                await append(store, ref, after=6)
            if entry.id == "7-0":
                break
    await following_it.aclose()
    assert ids(seen) == versions(1, 7)


@pytest.mark.parametrize("seen", range(5))
async def test_a_follower_anywhere_behind_a_stream_of_its_newest_event_gets_what_lies_between(
    store: EventStore, hub: Hub, projector: Projector, seen: int
) -> None:
    ref = await five_events(store)
    await projector.catch_up()
    await expire(store, ref)
    await store._seed_job(ref)
    assert await store.redis.xlen(store.keys(TENANT).job(ref.job)) == 1
    assert ids(await take(hub, ref, 5 - seen, after=f"{seen}-0")) == versions(seen + 1, 5)


async def test_a_follower_of_an_expired_job_gets_its_whole_history(
    store: EventStore, hub: Hub, projector: Projector
) -> None:
    ref = await write(store, build())
    await projector.catch_up()
    await expire(store, ref)
    assert ids(await take(hub, ref, len(build()))) == versions(1, len(build()))


async def test_a_follower_at_the_end_of_an_expired_job_is_woken_by_its_next_event(
    store: EventStore, hub: Hub, projector: Projector
) -> None:
    ref, last = await write(store, build()), len(build())
    await projector.catch_up()
    await expire(store, ref)
    seen: list[JobEntry] = []

    async def listen() -> None:
        seen.extend(await take(hub, ref, 2, after=f"{last - 1}-0"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        await CommandHandler(store).handle(ref, ExpirePreview("time-out"))
    assert ids(seen) == versions(last, last + 1)


# --- ahead of the history -------------------------------------------------------------------------


@pytest.mark.parametrize("expired", [False, True], ids=["stream", "archive"])
@pytest.mark.parametrize("ahead", ["6-0", "6-3", "99-0"])
async def test_who_is_ahead_of_the_history_is_told_so_and_gets_it_anew(
    store: EventStore, hub: Hub, projector: Projector, ahead: str, expired: bool
) -> None:
    ref = await five_events(store)
    if expired:
        await projector.catch_up()
        await expire(store, ref)
    assert ids(await take(hub, ref, 6, after=ahead)) == ["reset", *versions(1, 5)]


async def test_who_has_seen_a_job_of_which_nothing_is_left_is_told_so(
    store: EventStore, hub: Hub
) -> None:
    ref = JobRef(TENANT, "gone")
    assert ids(await take(hub, ref, 1, after="3-0")) == ["reset"]


# --- the server, the bells ------------------------------------------------------------------------


@pytest.fixture
async def killable_hub(server: KillableServer, archive: Archive) -> AsyncIterator[Hub]:
    """The hub of a log on a server of the test's own."""
    redis, bells = connect_redis(server.url), connect_redis(server.url)
    listening = Hub(await open_log(redis, archive, partitions=PARTITIONS), bells)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listening.run)
        yield listening
        tasks.cancel_scope.cancel()
    await redis.aclose()
    await bells.aclose()


async def test_who_follows_again_behind_the_last_entry_gets_each_event_once_over_a_restart(
    killable_hub: Hub, server: KillableServer
) -> None:
    store, seen, last = killable_hub.store, list[str](), START
    ref = await five_events(store)
    with anyio.fail_after(PATIENCE_S):
        while last != "9-0":
            try:
                async for entry in follow(killable_hub, ref, last):
                    seen.append(entry.id)
                    last = entry.id
                    if last == "2-0":
                        server.kill()
                        await server.start()
                    if last in versions(5, 8):
                        await append(store, ref, after=len(seen))
                    if last == "9-0":
                        break
            except RedisUnavailable:
                await anyio.lowlevel.checkpoint()
    assert seen == versions(1, 9)


async def test_a_follower_waits_through_a_restart_and_is_woken_after_it(
    killable_hub: Hub, server: KillableServer
) -> None:
    store = killable_hub.store
    ref = await five_events(store)
    seen: list[JobEntry] = []

    async def listen() -> None:
        seen.extend(await take(killable_hub, ref, 6))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        with anyio.fail_after(PATIENCE_S):
            while len(killable_hub._jobs[ref.job]) < 1:
                await anyio.lowlevel.checkpoint()
        server.kill()
        await server.start()
        await append(store, ref, after=5)
    assert ids(seen) == versions(1, 6)


async def test_five_thousand_bells_that_a_hub_missed_cost_its_followers_nothing(
    store: EventStore, redis: Redis, servers: Servers
) -> None:
    bells, bell = connect_redis(servers.redis_url), store.keys(TENANT).bell
    hub = Hub(store, bells)
    ref = await five_events(store)
    seen: list[JobEntry] = []

    async def listen() -> None:
        seen.extend(await take(hub, ref, 105))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        async with anyio.create_task_group() as paused:
            paused.start_soon(hub.run)
            with anyio.fail_after(PATIENCE_S):
                while not hub._jobs[ref.job]:
                    await anyio.lowlevel.checkpoint()
            paused.cancel_scope.cancel()
        for after in range(5, 105):
            await append(store, ref, after=after)
        rings = redis.pipeline(transaction=False)
        for _ in range(5_000):
            rings.xadd(bell, {"job": "another", "what": "line"}, maxlen=1_000)
        await rings.execute()
        assert await redis.xlen(bell) <= 2_000
        async with anyio.create_task_group() as going_on:
            going_on.start_soon(hub.run)
            with anyio.fail_after(PATIENCE_S):
                while len(seen) < 105:
                    await anyio.lowlevel.checkpoint()
            going_on.cancel_scope.cancel()
    assert ids(seen) == versions(1, 105)
    await bells.aclose()


# --- what followers cost --------------------------------------------------------------------------


async def test_a_follower_that_does_not_read_holds_no_more_than_a_batch(
    store: EventStore, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, line_bytes, batch = 400, 20_000, 10
    monkeypatch.setattr(following, "_BATCH", batch)
    ref = await write(store, [queued()])
    (claim,) = await store.work.claim(OURS, "w1", free_slots=1, lease_ms=60_000)
    for _ in range(lines):
        text = {"text": "x" * line_bytes}
        await store.progress(claim, "log", text, time=datetime.now(UTC))
    slow = follow(hub, ref)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    await anext(slow)
    await append(store, ref, after=1)
    await anyio.wait_all_tasks_blocked()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 4 * batch * line_bytes < lines * line_bytes / 8
    with anyio.fail_after(PATIENCE_S):
        seen = [(await anext(slow)).id for _ in range(lines + 1)]
    assert seen == [*(f"1-{number}" for number in range(1, lines + 1)), "2-0"]
    await slow.aclose()


async def test_three_hundred_followers_take_no_more_connections_than_a_process_has(
    store: EventStore, hub: Hub, redis: Redis
) -> None:
    ref = await five_events(store)
    seen: list[list[str]] = []

    async def listen() -> None:
        seen.append(ids(await take(hub, ref, 6)))

    async with anyio.create_task_group() as tasks:
        for _ in range(300):
            tasks.start_soon(listen)
        await append(store, ref, after=5)
        most = len(await redis.client_list(_type="normal"))
    of_the_hub, of_this_test = 1, 1
    assert most <= MAX_CONNECTIONS + of_the_hub + of_this_test
    assert seen == [versions(1, 6)] * 300
