"""The rules of `append.lua`, each against the real server."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import anyio
import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Appended,
    Archive,
    CommandHandler,
    CommandId,
    CommandIdReused,
    EventStore,
    EventStoreError,
    Fenced,
    LogMissing,
    LogUnverified,
    NumberTaken,
    RedisUnavailable,
    ServerUnsuitable,
    VersionConflict,
    open_log,
)
from eventstore.connection import server_id
from eventstore.keys import Keys
from projector import Projector
from schemas import JobRef, NewEvent, Phase
from schemas.commands import CompletePhase, FinishBuild, RequestBuild, StartJob, StartPhase
from schemas.events import CancelRequested, JobQueued, JobReady, Known
from tests.logs import PARTITIONS

pytestmark = [pytest.mark.anyio, pytest.mark.both_servers]

TENANT, PROJECT = "acme", "shop"


def new(payload: Known) -> NewEvent:
    return NewEvent(id=str(uuid4()), time=datetime.now(UTC), payload=payload)


def queued(project: str = PROJECT) -> NewEvent:
    return new(JobQueued(tenant=TENANT, user_id="ann", project_id=project, goal="a list"))


def ref() -> JobRef:
    return JobRef(TENANT, str(uuid4()))


async def start(handler: CommandHandler, job: JobRef) -> None:
    await handler.handle(job, RequestBuild(TENANT, "ann", PROJECT, "a list"))
    await handler.handle(job, StartJob("w1", 1))


async def complete_all_phases(handler: CommandHandler, job: JobRef) -> None:
    await start(handler, job)
    for phase in Phase:
        await handler.handle(job, StartPhase(phase))
        await handler.handle(job, CompletePhase(phase, duration_ms=1))


async def everything(redis: Redis) -> dict[bytes | str, object]:
    """All keys with their serialised values: equal before and after means nothing was written."""
    return {key: await redis.dump(key) for key in sorted(await redis.keys("*"))}


async def test_entry_ids_are_dense_and_carry_the_epoch(store: EventStore) -> None:
    job = ref()
    for version in range(5):
        event = queued() if version == 0 else new(CancelRequested(by="ann"))
        await store.append(job, PROJECT, [event], expected_version=version)
    entries = await store.read_log(store.partition(TENANT), None)
    assert [entry.position.entry_id for entry in entries] == [f"1-{n}" for n in range(1, 6)]
    assert [entry.event.version for entry in entries] == [1, 2, 3, 4, 5]


async def test_the_job_stream_holds_each_event_under_its_version(store: EventStore) -> None:
    job = ref()
    await store.append(job, PROJECT, [queued(), new(CancelRequested(by="a"))], expected_version=0)
    entries = await store.redis.xrange(store.keys(TENANT).job(job.job))
    assert [entry[0] for entry in entries or []] == [b"1-0", b"2-0"]


async def test_a_payload_keeps_its_bytes(store: EventStore) -> None:
    job = ref()
    event = queued()
    await store.append(job, PROJECT, [event], expected_version=0)
    (read,) = await store.read_job(job)
    assert read.data == event.data
    assert read.payload == event.payload


async def test_of_sixteen_writers_at_one_version_one_succeeds_and_the_rest_learn_the_version(
    store: EventStore,
) -> None:
    job = ref()
    await store.append(job, PROJECT, [queued()], expected_version=0)
    outcomes: list[int | None] = []

    async def write(number: int) -> None:
        try:
            event = new(CancelRequested(by=f"writer-{number}"))
            await store.append(job, PROJECT, [event], expected_version=1)
            outcomes.append(None)
        except VersionConflict as conflict:
            outcomes.append(conflict.actual)

    async with anyio.create_task_group() as tasks:
        for number in range(16):
            tasks.start_soon(write, number)
    assert sorted(outcomes, key=str) == [2] * 15 + [None]
    assert len(await store.read_job(job)) == 2


async def test_a_version_from_the_future_changes_nothing(store: EventStore, redis: Redis) -> None:
    job = ref()
    await store.append(job, PROJECT, [queued()], expected_version=0)
    before = await everything(redis)
    with pytest.raises(VersionConflict) as caught:
        await store.append(job, PROJECT, [new(CancelRequested(by="a"))], expected_version=7)
    assert caught.value.actual == 1
    assert await everything(redis) == before


async def test_an_append_whose_reply_was_lost_may_be_repeated(store: EventStore) -> None:
    job = ref()
    events = [queued(), new(CancelRequested(by="ann"))]
    first = await store.append(job, PROJECT, events, expected_version=0)
    await store.append(job, PROJECT, [new(CancelRequested(by="bob"))], expected_version=2)
    again = await store.append(job, PROJECT, events, expected_version=0)
    assert again == first
    assert len(await store.read_job(job)) == 3


async def test_a_command_id_is_answered_once_and_then_remembered(store: EventStore) -> None:
    command = CommandId("k-1", "hash")
    job = ref()
    first = await store.append(job, PROJECT, [queued()], expected_version=0, command=command)
    again = await store.append(ref(), PROJECT, [queued()], expected_version=0, command=command)
    assert (again.job, again.position, again.repeated) == (job.job, first.position, True)
    assert len(await store.read_log(store.partition(TENANT), None)) == 1


async def test_a_command_id_with_another_request_is_refused(store: EventStore) -> None:
    job = ref()
    await store.append(
        job, PROJECT, [queued()], expected_version=0, command=CommandId("k-1", "hash")
    )
    with pytest.raises(CommandIdReused) as caught:
        await store.append(
            ref(), PROJECT, [queued()], expected_version=0, command=CommandId("k-1", "other")
        )
    assert caught.value.job == job.job


async def test_a_command_that_appended_nothing_is_remembered_too(store: EventStore) -> None:
    job = ref()
    await store.append(job, PROJECT, [queued()], expected_version=0)
    command = CommandId("k-2", "hash")
    await store.append(job, PROJECT, [], expected_version=1, command=command)
    found = await store.find_command(TENANT, command)
    assert found is not None
    assert (found.job, found.version) == (job.job, 1)


async def test_nothing_is_appended_when_the_log_is_missing(store: EventStore, redis: Redis) -> None:
    await redis.flushall()
    with pytest.raises(LogMissing):
        await store.append(ref(), PROJECT, [queued()], expected_version=0)
    assert await redis.keys("*") == []


async def test_nothing_is_appended_to_a_log_of_another_lineage(
    store: EventStore, redis: Redis
) -> None:
    await redis.hset(store.keys(TENANT).meta, "lineage", str(uuid4()))
    before = await everything(redis)
    with pytest.raises(LogUnverified):
        await store.append(ref(), PROJECT, [queued()], expected_version=0)
    assert await everything(redis) == before


async def test_a_wrong_number_of_arguments_changes_nothing(store: EventStore, redis: Redis) -> None:
    before = await everything(redis)
    with pytest.raises(EventStoreError, match="wrong number"):
        await store.scripts(0, "append", [store.keys(TENANT).meta], ["x"])
    assert await everything(redis) == before


async def test_two_jobs_ready_at_once_get_two_numbers(handler: CommandHandler) -> None:
    jobs = [ref(), ref()]
    for job in jobs:
        await complete_all_phases(handler, job)
    await handler.handle(jobs[0], FinishBuild(build_number=1))
    with pytest.raises(NumberTaken) as caught:
        await handler.handle(jobs[1], FinishBuild(build_number=1))
    assert caught.value.last == 1
    done = await handler.handle(jobs[1], FinishBuild(build_number=2))
    assert done.job.build_version == "build_v0_2"


async def test_a_skipped_number_is_refused(handler: CommandHandler) -> None:
    job = ref()
    await complete_all_phases(handler, job)
    with pytest.raises(NumberTaken):
        await handler.handle(job, FinishBuild(build_number=2))


async def test_a_lost_counter_is_seeded_from_the_log_before_a_number_is_given(
    handler: CommandHandler, redis: Redis
) -> None:
    first, second = ref(), ref()
    await complete_all_phases(handler, first)
    await handler.handle(first, FinishBuild(build_number=1))
    await complete_all_phases(handler, second)
    await redis.delete(handler.store.keys(TENANT).builds)
    with pytest.raises(NumberTaken) as caught:
        await handler.handle(second, FinishBuild(build_number=1))
    assert caught.value.last == 1


async def test_a_queued_job_is_put_on_the_work_stream_and_leaves_it_with_its_last_event(
    handler: CommandHandler, redis: Redis
) -> None:
    store, job = handler.store, ref()
    await handler.handle(job, RequestBuild(TENANT, "ann", PROJECT, "a list"))
    keys = store.keys(TENANT)
    assert await redis.xlen(keys.work("normal")) == 1
    (claim,) = await store.work.claim(store.partition(TENANT), "w1", free_slots=1, lease_ms=10_000)
    await handler.handle(job, StartJob("w1", claim.attempt), claim=claim)
    for phase in Phase:
        await handler.handle(job, StartPhase(phase), claim=claim)
        await handler.handle(job, CompletePhase(phase, duration_ms=1), claim=claim)
    await handler.handle(job, FinishBuild(build_number=1), claim=claim)
    assert await redis.xlen(keys.work("normal")) == 0
    pending = await redis.xpending(keys.work("normal"), "generators")
    assert pending["pending"] == 0
    assert await redis.hlen(keys.runs) == 0


async def test_a_worker_without_the_claim_is_fenced(handler: CommandHandler) -> None:
    store, job = handler.store, ref()
    await handler.handle(job, RequestBuild(TENANT, "ann", PROJECT, "a list"))
    partition = store.partition(TENANT)
    (old,) = await store.work.claim(partition, "w1", free_slots=1, lease_ms=10_000)
    await store.work.release(old)
    (new_claim,) = await store.work.claim(partition, "w2", free_slots=1, lease_ms=0)
    assert new_claim.attempt == 2
    with pytest.raises(Fenced) as caught:
        await handler.handle(job, StartJob("w1", old.attempt), claim=old)
    assert (caught.value.owner, caught.value.attempt) == ("w2", 2)
    assert len(await store.read_job(job)) == 1


async def test_every_key_of_a_partition_shares_its_hash_tag(
    handler: CommandHandler, redis: Redis
) -> None:
    job = ref()
    await start(handler, job)
    tag = f"{{{handler.store.partition(TENANT)}}}".encode()
    used = [key for key in await redis.keys("*") if job.job.encode() in key or b":log" in key]
    assert used
    assert all(tag in key for key in used)
    assert json.loads((await handler.store.read_job(job))[0].data)["goal"] == "a list"


async def test_opening_twice_finds_the_same_log(redis: Redis, archive: Archive) -> None:
    first = await open_log(redis, archive, partitions=PARTITIONS)
    await first.append(ref(), PROJECT, [queued()], expected_version=0)
    second = await open_log(redis, archive, partitions=PARTITIONS)
    assert len(await second.read_log(second.partition(TENANT), None)) == 1


async def test_two_processes_that_open_at_once_agree_on_one_log(
    redis: Redis, archive: Archive
) -> None:
    opened: list[EventStore] = []

    async def open_it() -> None:
        opened.append(await open_log(redis, archive, partitions=PARTITIONS))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(open_it)
    for version, store in enumerate(opened):
        await store.append(ref(), PROJECT, [queued()], expected_version=0)
        assert len(await store.read_log(store.partition(TENANT), None)) == version + 1


async def test_an_empty_redis_beside_a_registered_log_is_refused(
    store: EventStore, redis: Redis, archive: Archive
) -> None:
    await redis.flushall()
    with pytest.raises(LogMissing):
        await open_log(redis, archive, partitions=PARTITIONS)
    assert await redis.keys("*") == []


async def test_a_log_whose_database_was_made_anew_is_adopted_whole(
    store: EventStore, redis: Redis, archive: Archive, engine: AsyncEngine
) -> None:
    job = ref()
    await store.append(job, PROJECT, [queued()], expected_version=0)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM headrace.log_partitions"))
    adopted = await open_log(redis, archive, partitions=PARTITIONS)
    assert len(await adopted.read_job(job)) == 1


async def test_a_trimmed_log_without_its_archive_is_refused(
    store: EventStore, redis: Redis, archive: Archive, engine: AsyncEngine
) -> None:
    await store.append(ref(), PROJECT, [queued()], expected_version=0)
    await redis.xtrim(store.keys(TENANT).log, maxlen=0, approximate=False)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM headrace.log_partitions"))
    with pytest.raises(LogUnverified, match="only 0 of 1 events"):
        await open_log(redis, archive, partitions=PARTITIONS)


async def test_the_number_of_partitions_is_fixed_when_the_log_is_made(
    store: EventStore, redis: Redis, archive: Archive
) -> None:
    with pytest.raises(ServerUnsuitable, match="has 4 partitions, not 8"):
        await open_log(redis, archive, partitions=8)


async def test_an_opener_that_died_between_redis_and_postgres_is_followed_by_one_that_goes_on(
    store: EventStore, redis: Redis, archive: Archive, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE headrace.log_partitions SET state = 'creating'"))
    await open_log(redis, archive, partitions=PARTITIONS)
    assert {one.state for one in await archive.register.all()} == {"open"}


async def test_a_redis_that_may_evict_events_is_refused(redis: Redis, archive: Archive) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ServerUnsuitable, match="noeviction"):
            await open_log(redis, archive, partitions=PARTITIONS)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_a_command_waits_for_the_log_and_appends_once_though_answers_were_lost(
    handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ref()
    await handler.handle(job, RequestBuild(TENANT, "ann", PROJECT, "a list"))
    append, lost = handler.store.append, [1, 2]

    async def appended_but_unanswered(*args: Any, **kwargs: Any) -> Appended:
        done = await append(*args, **kwargs)
        if lost:
            lost.pop()
            raise RedisUnavailable("the connection broke")
        return done

    monkeypatch.setattr(handler.store, "append", appended_but_unanswered)
    handled = await handler.handle(job, StartJob("w1", 1), patience_s=60)
    assert handled.job.version == 2
    assert len(await handler.store.read_job(job)) == 2


async def test_a_redis_put_back_to_an_older_state_is_not_written_on(
    store: EventStore, redis: Redis, archive: Archive, engine: AsyncEngine
) -> None:
    for _ in range(2):
        await store.append(ref(), PROJECT, [queued()], expected_version=0)
    await Projector(store, engine).catch_up()
    keys = store.keys(TENANT)
    await redis.xdel(keys.log, "1-2")
    await redis.hset(keys.meta, "seq", "1")
    with pytest.raises(LogUnverified, match="ends at 1-1, its archive at 1-2"):
        await open_log(redis, archive, partitions=PARTITIONS)


async def test_a_log_with_another_event_than_its_archive_is_not_written_on(
    store: EventStore, redis: Redis, archive: Archive, engine: AsyncEngine
) -> None:
    await store.append(ref(), PROJECT, [queued()], expected_version=0)
    await Projector(store, engine).catch_up()
    async with engine.begin() as connection:
        await connection.execute(text(f"UPDATE headrace.events SET id = '{uuid4()}'"))
    with pytest.raises(LogUnverified, match="another event than in the archive"):
        await open_log(redis, archive, partitions=PARTITIONS)


async def test_an_abandoned_job_is_found_behind_many_living_ones(
    handler: CommandHandler, redis: Redis
) -> None:
    store, partition = handler.store, handler.store.partition(TENANT)
    for _ in range(15):
        await handler.handle(ref(), RequestBuild(TENANT, "ann", PROJECT, "a list"))
    claims = await store.work.claim(partition, "w1", free_slots=15, lease_ms=60_000)
    abandoned = claims[-1]
    work = store.keys(TENANT).work("normal")
    await redis.xclaim(
        work, "generators", "w1", 0, [abandoned.entry_id], idle=10_000_000, justid=True
    )
    await redis.hset(store.keys(TENANT).meta, "opened", "0")
    (taken,) = await store.work.claim(partition, "w2", free_slots=1, lease_ms=60_000)
    assert taken.ref == abandoned.ref


async def test_a_job_handed_back_is_taken_at_once_also_right_after_the_log_was_opened(
    handler: CommandHandler,
) -> None:
    job = ref()
    await handler.handle(job, RequestBuild(TENANT, "ann", PROJECT, "a list"))
    store, partition = handler.store, handler.store.partition(TENANT)
    (claim,) = await store.work.claim(partition, "w1", free_slots=1, lease_ms=3_600_000)
    assert await store.work.release(claim)
    assert not await store.work.release(claim)
    (again,) = await store.work.claim(partition, "w2", free_slots=1, lease_ms=3_600_000)
    assert (again.ref, again.attempt) == (job, 2)


async def test_a_redis_that_refuses_writes_is_told_as_unavailable(
    store: EventStore, redis: Redis
) -> None:
    await redis.config_set("min-replicas-to-write", "1")
    try:
        with pytest.raises(RedisUnavailable, match="NOREPLICAS"):
            await store.append(ref(), PROJECT, [queued()], expected_version=0)
    finally:
        await redis.config_set("min-replicas-to-write", "0")


async def test_a_restarted_server_gives_the_living_one_lease_to_report(
    store: EventStore, redis: Redis
) -> None:
    meta = store.keys(TENANT).meta
    await redis.hset(meta, mapping={"run": "of the server before", "opened": "0"})
    await store.verification.verify_again()
    run, opened = await redis.hmget(meta, ["run", "opened"])
    assert run == server_id(await redis.info()).encode()
    assert int(opened or 0) > 0


async def test_a_ready_event_without_its_number_is_refused(store: EventStore) -> None:
    job = ref()
    await store.append(job, PROJECT, [queued()], expected_version=0)
    ready = new(JobReady(build_number=1, build_version="build_v0_1"))
    with pytest.raises(NumberTaken):
        await store.append(job, PROJECT, [ready], expected_version=1)


async def test_keys_of_two_partitions_never_meet() -> None:
    assert Keys(1).job("x") != Keys(2).job("x")
