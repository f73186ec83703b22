"""Subscribing to a partition or a tenant: 1, 2, 3, … whoever has the events, and what breaks it."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import anyio
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Archive,
    EventStore,
    Housekeeper,
    Hub,
    LogEntry,
    LogUnverified,
    Passed,
    RedisUnavailable,
    Reset,
    Subscribed,
    connect_redis,
    following,
    open_log,
    subscribe,
)
from eventstore.register import Epoch
from projector import Projector
from schemas import Position
from tests.eventstore.killable import KillableServer
from tests.histories import TENANT, queued, started
from tests.logs import PARTITIONS
from tests.projector.writing import ONE_PER_PARTITION, write

OURS = ONE_PER_PARTITION.index(TENANT)
NEIGHBOUR = "hooli"
"""Another tenant of the same partition."""
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def only_bells_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not woken sleeps longer than any test lasts."""
    monkeypatch.setattr(following, "LOOK_AGAIN_S", 3_600.0)


@pytest.fixture
def projector(store: EventStore, engine: AsyncEngine) -> Projector:
    return Projector(store, engine)


def at(seq: int, epoch: int = 1) -> Position:
    return Position(OURS, epoch, seq)


async def events(store: EventStore, count: int, *, tenant: str = TENANT) -> None:
    """Append so many events of a new job."""
    await write(store, [queued(), *map(started, range(1, count))], tenant=tenant)


async def trim(store: EventStore, *, keep: int = 0) -> int:
    """Cut what is archived but for `keep` entries."""
    return await Housekeeper(store, keep_s=1e9, keep_events=keep, lease_s=60).trim(OURS)


async def new_epoch(store: EventStore, number: int, *, start_seq: int) -> None:
    """As if a server that ended before `start_seq` had been opened, the rest being lost."""
    async with store.archive.register.held(OURS) as held:
        await held.enter([Epoch(number, start_seq, f"run {number}")])
    keys = store.keys(TENANT)
    there = [entry.position for entry in await store.read_log(OURS, None)]
    if lost := [position.entry_id for position in there if position.seq >= start_seq]:
        await store.redis.xdel(keys.log, *lost)
    await store.redis.hset(keys.meta, mapping={"epoch": number, "seq": start_seq - 1})


async def take(
    hub: Hub, count: int, *, after: Position | None = None, tenant: str | None = None
) -> list[Subscribed]:
    """The next `count` that a subscriber behind `after` is given."""
    taken: list[Subscribed] = []
    subscription = subscribe(hub, partition=None if tenant else OURS, tenant=tenant, after=after)
    with anyio.fail_after(PATIENCE_S):
        async for entry in subscription:
            taken.append(entry)
            if len(taken) == count:
                break
    await subscription.aclose()
    return taken


def places(taken: Sequence[Subscribed]) -> list[str]:
    """Entry ids of events, `reset` with where to, `passed` with what."""
    told = []
    for entry in taken:
        match entry:
            case LogEntry():
                told.append(entry.position.entry_id)
            case Passed():
                told.append(f"passed {entry.position.entry_id}")
            case Reset():
                told.append(f"reset {entry.after.entry_id if entry.after else 'all'}")
    return told


# --- without a gap, without a repeat --------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_however_events_come_are_archived_and_trimmed_a_subscriber_gets_each_once_in_order(
    store: EventStore, hub: Hub, projector: Projector, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    monkeypatch.setattr(following, "_BATCH", chance.choice([1, 3, 256]))
    total, gone_on = 60, anyio.Event()
    seqs: list[int] = []

    async def moves() -> None:
        written = 0
        while written < total:
            match chance.choice(["append", "append", "archive", "trim", "wait"]):
                case "append":
                    count = min(chance.randint(1, 5), total - written)
                    await events(store, count, tenant=chance.choice([TENANT, NEIGHBOUR]))
                    written += count
                case "archive":
                    await projector.fold_batch(OURS)
                case "trim":
                    await trim(store, keep=chance.randint(0, 4))
                case "wait":
                    for _ in range(chance.randint(1, 50)):
                        await anyio.lowlevel.checkpoint()
        gone_on.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(moves)
        for entry in await take(hub, total):
            assert isinstance(entry, LogEntry)
            seqs.append(entry.position.seq)
    assert seqs == list(range(1, total + 1))


@pytest.mark.parametrize("batch", [1, 2, 256])
async def test_a_subscriber_resumes_exactly_behind_any_checkpoint(
    store: EventStore,
    hub: Hub,
    projector: Projector,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    await events(store, 4)
    await projector.catch_up()
    await new_epoch(store, 2, start_seq=5)
    await events(store, 4)
    await projector.catch_up()
    assert await trim(store, keep=2) == 6
    await events(store, 2)
    monkeypatch.setattr(following, "_BATCH", batch)
    whole = ["1-1", "1-2", "1-3", "1-4", "2-5", "2-6", "2-7", "2-8", "2-9", "2-10"]
    assert places(await take(hub, 10)) == whole
    for number, entry_id in enumerate(whole[:-1], start=1):
        after = Position.at(OURS, entry_id)
        assert places(await take(hub, 10 - number, after=after)) == whole[number:]


async def test_a_subscriber_at_the_beginning_of_an_epoch_without_events_misses_none(
    store: EventStore, hub: Hub
) -> None:
    beginning = await store.log_end(OURS)
    await new_epoch(store, 2, start_seq=1)
    await events(store, 2)
    assert places(await take(hub, 2, after=beginning)) == ["2-1", "2-2"]


async def test_a_subscriber_that_waits_is_woken_by_the_next_event(
    store: EventStore, hub: Hub
) -> None:
    seen: list[str] = []
    subscription = subscribe(hub, partition=OURS)
    await events(store, 1)
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            async for entry in subscription:
                seen += places([entry])
                if len(seen) == 5:
                    break
                tasks.start_soon(events, store, 1)
    await subscription.aclose()
    assert seen == ["1-1", "1-2", "1-3", "1-4", "1-5"]


async def test_a_tenant_gets_its_own_events_and_is_told_what_it_has_passed(
    store: EventStore, hub: Hub
) -> None:
    await events(store, 2)
    await events(store, 3, tenant=NEIGHBOUR)
    assert places(await take(hub, 3, tenant=TENANT)) == ["1-1", "1-2", "passed 1-5"]
    taken = await take(hub, 4, tenant=NEIGHBOUR)
    assert places(taken) == ["1-3", "1-4", "1-5", "passed 1-5"]
    assert {entry.event.tenant for entry in taken if isinstance(entry, LogEntry)} == {NEIGHBOUR}
    await events(store, 1, tenant=NEIGHBOUR)
    assert places(await take(hub, 1, tenant=TENANT, after=at(5))) == ["passed 1-6"]


# --- a lost end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [4, 5, 6])
async def test_who_has_seen_a_lost_end_is_set_back_to_the_last_position_that_it_shares(
    store: EventStore, hub: Hub, seen: int
) -> None:
    await events(store, 6)
    await new_epoch(store, 2, start_seq=4)
    await events(store, 4)
    whole = ["reset 1-3", "2-4", "2-5", "2-6", "2-7"]
    assert places(await take(hub, 5, after=at(seen))) == whole
    assert places(await take(hub, 4, after=at(3))) == whole[1:]


async def test_a_lost_end_is_told_also_where_the_log_seems_to_go_on(
    store: EventStore, hub: Hub, projector: Projector
) -> None:
    await events(store, 5)
    await new_epoch(store, 2, start_seq=4)
    await events(store, 4)
    await projector.catch_up()
    # The newest is 2-7: of seq 6 as of those before it the log knows nothing any more.
    await trim(store, keep=1)
    assert places(await take(hub, 5, after=at(6))) == ["reset 1-3", "2-4", "2-5", "2-6", "2-7"]


async def test_an_end_that_two_failovers_lost_is_told_back_to_where_the_second_began(
    store: EventStore, hub: Hub
) -> None:
    await events(store, 6)
    await new_epoch(store, 2, start_seq=6)
    await events(store, 2)
    await new_epoch(store, 3, start_seq=3)
    await events(store, 4)
    whole = ["reset 1-2", "3-3", "3-4", "3-5", "3-6"]
    for lost in (at(4), at(5), at(6), at(6, epoch=2), at(7, epoch=2)):
        assert places(await take(hub, 5, after=lost)) == whole


async def test_who_has_seen_only_what_was_lost_begins_anew(store: EventStore, hub: Hub) -> None:
    await events(store, 2)
    await new_epoch(store, 2, start_seq=1)
    await events(store, 3)
    assert places(await take(hub, 4, after=at(2))) == ["reset all", "2-1", "2-2", "2-3"]


async def test_who_is_ahead_of_the_log_is_set_back_once(store: EventStore, hub: Hub) -> None:
    await events(store, 3)
    taken: list[Subscribed] = []
    async with aclosing(subscribe(hub, partition=OURS, after=at(99))) as subscription:
        with anyio.fail_after(PATIENCE_S):
            taken.append(await anext(subscription))
            await events(store, 2)
            taken += [await anext(subscription) for _ in range(2)]
    assert places(taken) == ["reset 1-3", "1-4", "1-5"]


async def test_a_checkpoint_of_an_epoch_that_never_was_is_set_back(
    store: EventStore, hub: Hub
) -> None:
    await events(store, 3)
    assert places(await take(hub, 2, after=at(2, epoch=9))) == ["reset 1-2", "1-3"]


# --- holes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", [1, 3, 5])
async def test_a_hole_in_redis_is_filled_from_the_archive(
    store: EventStore, hub: Hub, projector: Projector, redis: Redis, hole: int
) -> None:
    await events(store, 5)
    await projector.catch_up()
    await events(store, 1)
    await redis.xdel(store.keys(TENANT).log, f"1-{hole}")
    assert places(await take(hub, 6)) == ["1-1", "1-2", "1-3", "1-4", "1-5", "1-6"]


@pytest.mark.parametrize("hole", [1, 3, 5])
async def test_an_event_that_is_nowhere_is_not_passed_over(
    store: EventStore, hub: Hub, redis: Redis, hole: int
) -> None:
    await events(store, 5)
    await redis.xdel(store.keys(TENANT).log, f"1-{hole}")
    seen: list[str] = []
    subscription = subscribe(hub, partition=OURS)

    async def reads() -> None:
        with anyio.fail_after(PATIENCE_S):
            async for entry in subscription:
                seen.extend(places([entry]))

    with pytest.raises(LogUnverified, match=f"seq {hole} is nowhere"):
        await reads()
    assert seen == [f"1-{seq}" for seq in range(1, hole)]


# --- a restart ------------------------------------------------------------------------------------


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


async def test_a_subscriber_goes_on_behind_its_checkpoint_when_redis_is_back(
    killable_hub: Hub, server: KillableServer
) -> None:
    store, seen = killable_hub.store, list[str]()
    checkpoint: Position | None = None
    await events(store, 3)
    with anyio.fail_after(PATIENCE_S):
        while len(seen) < 6:
            try:
                async for entry in subscribe(killable_hub, partition=OURS, after=checkpoint):
                    assert isinstance(entry, LogEntry)
                    seen += places([entry])
                    checkpoint = entry.position
                    if len(seen) == 2:
                        server.kill()
                        await server.start()
                        await events(store, 3)
                    if len(seen) == 6:
                        break
            except RedisUnavailable:
                await anyio.lowlevel.checkpoint()
    assert seen == ["1-1", "1-2", "1-3", "2-4", "2-5", "2-6"]
