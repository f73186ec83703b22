"""Erased jobs leave Redis to the last byte; what is not theirs, or not archived, stays."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid6 import uuid7

from eventstore import (
    Archive,
    Claim,
    CommandId,
    EventStore,
    Hub,
    JobEvent,
    LogEntry,
    erasing,
    follow,
    open_log,
    subscribe,
)
from eventstore.erasing import (
    NODE_ENTRIES,
    cut_log,
    forget_commands,
    forget_streams,
    newest_events,
)
from eventstore.keys import Keys
from projector import Projector
from projector.erasing import erase
from schemas import JobRef, Position, fold
from schemas.events import Known, PreviewExpired
from tests.histories import NOON, PROJECT, TENANT, build, failed, new, queued, ready, started
from tests.logs import PARTITIONS
from tests.projector.writing import ONE_PER_PARTITION, write
from tests.remains import found_in_redis

OURS = ONE_PER_PARTITION.index(TENANT)
KEYS = Keys(OURS)
SECRET = "a diary for Erika Mustermann"
PATIENCE_S = 30.0


@pytest.fixture
def projector(store: EventStore, engine: AsyncEngine) -> Projector:
    return Projector(store, engine)


def secretly(number: int = 1) -> list[Known]:
    return [queued(SECRET), *build(number)[1:]]


async def forget(store: EventStore, engine: AsyncEngine, jobs: Sequence[str]) -> int:
    return await forget_streams(store, OURS, await newest_events(engine, OURS, jobs))


async def end_of(engine: AsyncEngine, *jobs: str) -> Position:
    return max(entry.position for entry in await newest_events(engine, OURS, jobs))


# --- job streams ---------------------------------------------------------------------------------


async def test_of_an_erased_jobs_stream_the_last_tombstone_is_left_for_a_minute(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    ref, other = await write(store, secretly()), await write(store, build(2))
    await projector.catch_up()
    await erase(engine, OURS, [ref.job])
    before = await redis.dump(KEYS.job(other.job))
    assert await forget(store, engine, [ref.job]) == 0
    stream: Any = await redis.xrange(KEYS.job(ref.job))
    ((entry, fields),) = stream
    assert entry == f"{len(build())}-0".encode()
    assert b"erased_sha256" in fields[b"data"]
    assert 0 < await redis.pttl(KEYS.job(ref.job)) <= 60_000
    assert await redis.dump(KEYS.job(other.job)) == before
    assert await store.read_job(ref) == await store.archive.read_job(TENANT, ref.job)


async def test_progress_goes_with_the_stream(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    ref = await write(store, [queued()])
    (admission,) = await claimed(store)
    await store.progress(admission, "log", {"text": SECRET}, time=NOON)
    await write(store, [started(), failed()], job=ref.job, after=1)
    await projector.catch_up()
    assert await found_in_redis(redis, SECRET) == [KEYS.job(ref.job)]
    assert await forget(store, engine, [ref.job]) == 0
    assert await found_in_redis(redis, SECRET) == []


async def claimed(store: EventStore) -> list[Claim]:
    return await store.work.claim(OURS, "w1", free_slots=1, lease_ms=60_000)


async def test_a_stream_with_news_that_is_not_archived_stays_whole(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    ref = await write(store, build())
    await projector.catch_up()
    await write(store, [PreviewExpired(reason="over")], job=ref.job, after=len(build()))
    before = await redis.dump(KEYS.job(ref.job))
    assert await forget(store, engine, [ref.job]) == 1
    assert await redis.dump(KEYS.job(ref.job)) == before
    await projector.catch_up()
    assert await forget(store, engine, [ref.job]) == 0


async def test_the_stream_of_a_job_that_lives_stays_whole(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    ref = await write(store, [queued(), started()])
    await projector.catch_up()
    before = await redis.dump(KEYS.job(ref.job))
    assert await forget(store, engine, [ref.job]) == 1
    assert await redis.dump(KEYS.job(ref.job)) == before


async def test_what_was_read_from_the_archive_before_the_erasure_is_not_put_back_after_it(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    ref = await write(store, [*secretly()[:-1], failed().model_copy(
        update={"message": SECRET}
    )])  # fmt: skip
    await projector.catch_up()
    read = store.archive.newest_of_job

    async def overtaken(tenant: str, job: str):  # type: ignore[no-untyped-def]
        found = await read(tenant, job)
        await erase(engine, OURS, [ref.job])
        await forget(store, engine, [ref.job])
        await cut_log(store, await end_of(engine, ref.job))
        return found

    store.archive.newest_of_job = overtaken  # type: ignore[method-assign]
    await store._seed_job(ref)
    assert await found_in_redis(redis, SECRET) == []


async def test_an_erased_job_takes_its_next_event_on_its_version(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    ref = await write(store, build())
    await projector.catch_up()
    await erase(engine, OURS, [ref.job])
    await forget(store, engine, [ref.job])
    await cut_log(store, await end_of(engine, ref.job))
    await write(store, [PreviewExpired(reason="over")], job=ref.job, after=len(build()))
    await projector.catch_up()
    job = fold(await store.read_job(ref))
    assert job is not None
    assert (job.version, job.goal, job.build_number) == (len(build()) + 1, "[erased]", 1)


# --- commands ------------------------------------------------------------------------------------


async def say(store: EventStore, command: str, tenant: str = TENANT) -> JobRef:
    ref = JobRef(tenant, str(uuid7()))
    await store.append(
        ref,
        PROJECT,
        new([queued()], job=ref.job),
        expected_version=0,
        command=CommandId(command, "a-hash"),
    )
    return ref


async def test_only_the_commands_of_erased_jobs_are_forgotten(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "_SCANNED", 1)
    ours = {(await say(store, f"ours-{number}")).job for number in range(20)}
    kept = {(await say(store, f"kept-{number}")).job: f"kept-{number}" for number in range(20)}
    stranger = await say(store, "ours-1", tenant="tenant-0")
    assert await forget_commands(store, TENANT, ours) == 20
    for number in range(20):
        assert await store.find_command(TENANT, CommandId(f"ours-{number}", "a-hash")) is None
    for job, name in kept.items():
        found = await store.find_command(TENANT, CommandId(name, "a-hash"))
        assert found is not None
        assert found.job == job
    there = await store.find_command("tenant-0", CommandId("ours-1", "a-hash"))
    assert there is not None
    assert there.job == stranger.job
    assert await forget_commands(store, TENANT, ours) == 0


async def test_a_command_id_that_was_used_anew_meanwhile_keeps_its_answer(
    store: EventStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await say(store, "again")
    key = KEYS.command(TENANT, "again")
    plain = store.scripts.plain

    async def overtaken(name: str, keys: list[str], args: list[object]) -> object:
        monkeypatch.undo()
        await redis.delete(key)
        await say(store, "again")
        return await plain(name, keys, args)

    monkeypatch.setattr(store.scripts, "plain", overtaken)
    assert await forget_commands(store, TENANT, {old.job}) == 0
    assert await redis.get(key) is not None


# --- the log -------------------------------------------------------------------------------------


async def erase_whole(
    store: EventStore, engine: AsyncEngine, projector: Projector, *jobs: str
) -> bool:
    """Erase these ended jobs everywhere; whether the log is free of them."""
    await erase(engine, OURS, jobs)
    await forget(store, engine, jobs)
    return await cut_log(store, await end_of(engine, *jobs))


async def test_no_byte_of_an_erased_goal_is_left_in_redis(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    ref = await write(store, secretly())
    other = await write(store, build(2))
    await projector.catch_up()
    assert await found_in_redis(redis, SECRET) == [KEYS.job(ref.job), KEYS.log]
    assert await erase_whole(store, engine, projector, ref.job)
    assert await found_in_redis(redis, SECRET) == []
    assert await store.read_job(other) == await store.archive.read_job(TENANT, other.job)


async def test_what_is_far_behind_the_erased_events_stays_in_the_log(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    await write(store, build())
    ref = await write(store, secretly(2))
    for number in range(3, 20):
        await write(store, build(number))
    await projector.catch_up()
    assert await erase_whole(store, engine, projector, ref.job)
    assert await found_in_redis(redis, SECRET) == []
    end, last = await store.log_end(OURS), await end_of(engine, ref.job)
    assert await redis.xlen(KEYS.log) == end.seq - last.seq - NODE_ENTRIES > 0


async def test_what_is_not_archived_is_not_cut_and_is_asked_to_be(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    ref = await write(store, secretly())
    await projector.catch_up()
    late = await write(store, build(2))
    assert not await erase_whole(store, engine, projector, ref.job)
    assert await redis.xlen(KEYS.log) == len(build())
    assert await projector.catch_up() == len(build())
    assert await cut_log(store, await end_of(engine, ref.job))
    assert await found_in_redis(redis, SECRET) == []
    assert await store.read_job(late) == await store.archive.read_job(TENANT, late.job)


async def test_a_log_that_was_trimmed_past_the_erased_events_is_left_as_it_is(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    ref = await write(store, secretly())
    for number in range(2, 20):
        await write(store, build(number))
    await projector.catch_up()
    assert await erase_whole(store, engine, projector, ref.job)
    before = await redis.xrange(KEYS.log)
    assert await erase_whole(store, engine, projector, ref.job)
    assert await redis.xrange(KEYS.log) == before


async def test_numbering_goes_on_behind_erased_builds(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    one, two = await write(store, secretly(1)), await write(store, secretly(2))
    await projector.catch_up()
    assert await erase_whole(store, engine, projector, one.job, two.job)
    assert await store.last_build_number(TENANT, PROJECT) == 2
    await write(store, [*build()[:-1], ready(3)])
    await projector.catch_up()


async def test_an_erased_log_opens_again_on_this_server_and_as_if_on_another(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis, archive: Archive
) -> None:
    ref = await write(store, secretly())
    await projector.catch_up()
    assert await erase_whole(store, engine, projector, ref.job)
    await open_log(redis, archive, partitions=PARTITIONS)
    await redis.hset(KEYS.meta, "run", "before")
    anew = await open_log(redis, archive, partitions=PARTITIONS)
    await write(anew, build(2))
    assert await Projector(anew, engine).catch_up() == len(build())


async def test_followers_get_the_tombstones_under_the_same_ids(
    store: EventStore, engine: AsyncEngine, projector: Projector, hub: Hub
) -> None:
    ref = await write(store, secretly())
    await projector.catch_up()
    before = await store.read_job(ref)
    assert await erase_whole(store, engine, projector, ref.job)
    await write(store, [PreviewExpired(reason="over")], job=ref.job, after=len(before))
    with anyio.fail_after(PATIENCE_S):
        for seen in (0, 3, len(before)):
            async with aclosing(follow(hub, ref, f"{seen}-0")) as entries:
                entry = await anext(entries)
            assert isinstance(entry, JobEvent)
            assert entry.event.version == seen + 1
            assert SECRET.encode() not in entry.event.data
        async with aclosing(subscribe(hub, partition=OURS)) as entries_of_all:
            found = [await anext(entries_of_all) for _ in before]
    assert [one.event.id for one in found if isinstance(one, LogEntry)] == [e.id for e in before]
