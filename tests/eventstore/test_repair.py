"""Repairing a log that Redis lost: nothing is removed unsaved, no position comes twice."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    TENANT_CAP,
    Archive,
    CommandHandler,
    EventStore,
    Fenced,
    Housekeeper,
    Hub,
    JobEvent,
    LogEntry,
    LogMissing,
    LogUnverified,
    Repair,
    Repaired,
    RepairRefused,
    Reset,
    VersionConflict,
    connect_redis,
    follow,
    open_log,
    repair,
    subscribe,
)
from eventstore.keys import Keys
from eventstore.reading import stream_end
from projector import Projector, verify
from schemas import JobRef, NewEvent, Position, Status
from tests.databases import NewDatabase
from tests.eventstore.killable import KillableServer
from tests.histories import NOON, build, failed, new, queued, started
from tests.logs import PARTITIONS, new_log
from tests.projector.contents import READ_MODEL, execute, whole_log
from tests.projector.writing import ONE_PER_PARTITION, write

CAP = 7
PARTITION_OF_ACME = 2


@dataclass(frozen=True, slots=True)
class Broken:
    """A log of which something was lost, and what it had."""

    server: KillableServer
    redis: Redis
    engine: AsyncEngine
    folder: Path
    builds: list[JobRef]
    running: list[JobRef]

    def repair(self) -> Repair:
        return Repair(self.redis, self.engine, self.folder)

    async def mend(self) -> list[Repaired]:
        repair = self.repair()
        return await repair.run(await repair.examine())

    async def open(self) -> EventStore:
        return await open_log(self.redis, Archive(self.engine), partitions=PARTITIONS)

    def saved(self) -> list[dict[str, Any]]:
        """Every event in the files that were written."""
        return [
            json.loads(line)
            for path in sorted(self.folder.glob("*.jsonl"))
            for line in path.read_text().splitlines()
        ]

    async def refuses(self) -> str:
        """Why a repair is refused, and that nothing was changed then."""
        before = await self.server.everything()
        with pytest.raises(RepairRefused) as refused:
            await self.repair().examine()
        assert await self.server.everything() == before
        return str(refused.value)


@pytest.fixture
async def whole(
    server: KillableServer, engine: AsyncEngine, new_database: NewDatabase, tmp_path: Path
) -> AsyncIterator[Broken]:
    """A log with a build and a running job in every partition, all archived; nothing is broken."""
    redis = connect_redis(server.url)
    store = await new_log(redis, Archive(engine), new_database.execute, tenant_cap=TENANT_CAP)
    builds = [await write(store, build(), tenant=tenant) for tenant in ONE_PER_PARTITION]
    running = [
        await write(store, [queued(), started()], tenant=tenant) for tenant in ONE_PER_PARTITION
    ]
    await store.work.set_cap("acme", CAP)
    await Projector(store, engine).catch_up()
    redis.connection_pool.verify = None  # type: ignore[attr-defined]
    yield Broken(server, redis, engine, tmp_path / "repairs", builds, running)
    await redis.aclose()


async def flushed(log: Broken) -> None:
    await log.redis.flushall()


async def set_back(log: Broken) -> None:
    """Older data were put back: without what was appended and archived since."""
    log.server.kill()
    log.server.keep_data()
    await log.server.start()
    store = await log.open()
    log.redis.connection_pool.verify = None  # type: ignore[attr-defined]
    for ref in log.running:
        await store.append(ref, "shop", later(ref), expected_version=2)
    await Projector(store, log.engine).catch_up()
    log.server.kill()
    log.server.put_data_back()
    await log.server.start()


async def forked(log: Broken) -> None:
    """Where the archive ends Redis has other events, and one behind them."""
    for ref in log.running:
        await execute(
            log.engine,
            f"UPDATE headrace.events SET id = gen_random_uuid() WHERE job = '{ref.job}'"
            " AND version = 2",
        )
    await unarchived_end(log)


async def without_meta(log: Broken) -> None:
    """The keys of meta alone are gone."""
    await unarchived_end(log)
    await log.redis.delete(*(Keys(number).meta for number in range(PARTITIONS)))


async def without_log(log: Broken) -> None:
    """The keys of the log alone are gone."""
    await unarchived_end(log)
    await log.redis.delete(*(Keys(number).log for number in range(PARTITIONS)))


async def unarchived_end(log: Broken) -> None:
    """Every running job has an event that nobody has archived."""
    for ref in log.running:
        keys = Keys(ONE_PER_PARTITION.index(ref.tenant))
        (event,) = later(ref)
        fields: dict[Any, Any] = {"id": event.id, "type": event.payload.type, "tenant": ref.tenant}
        fields |= {"project": "shop", "job": ref.job, "version": "3", "cause": "", "trace": ""}
        fields |= {"time": "2026-03-01T12:00:03.000000Z", "data": event.data.decode()}
        seq = int(await log.redis.hincrby(keys.meta, "seq", 1))
        epoch = int(await log.redis.hget(keys.meta, "epoch") or 0)
        await log.redis.xadd(keys.log, fields, id=f"{epoch}-{seq}")
        await log.redis.xadd(keys.job(ref.job), fields | {"at": f"{epoch}-{seq}"}, id="3-0")


def later(ref: JobRef) -> list[NewEvent]:
    return new([started(2)], job=ref.job, after=2)


Losses = Callable[[Broken], Awaitable[None]]
LOSSES: list[Losses] = [flushed, set_back, forked, without_meta, without_log]


async def is_mended(log: Broken) -> None:
    """The log opens, builds stand, what ran has failed cleanly, and all can be folded."""
    store = await log.open()
    handler = CommandHandler(store)
    for ref in log.builds:
        assert (await handler.load(ref)).status is Status.READY
    for ref in log.running:
        job = await handler.load(ref)
        assert (job.status, job.failure_kind) == (Status.FAILED, "history_lost")
        assert job.error_message is not None
        assert "lost after version" in job.error_message
        assert (job.debug_id or "").startswith("dbg-")
    await Projector(store, log.engine).catch_up()
    replayed, differences = await verify(log.engine)
    assert not differences
    assert replayed.jobs == len(log.builds) + len(log.running)
    log.redis.connection_pool.verify = None  # type: ignore[attr-defined]
    assert not await log.repair().examine()


# --- what is mended ------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_log_that_was_lost_is_refused_and_after_a_repair_it_opens(
    whole: Broken, lose: Losses
) -> None:
    await lose(whole)
    with pytest.raises(LogMissing if lose in (flushed, without_meta) else LogUnverified):
        await whole.open()
    repaired = await whole.mend()
    assert [one.fault.partition for one in repaired] == list(range(PARTITIONS))
    assert [end.job.ref for one in repaired for end in one.failed] == whole.running
    await is_mended(whole)


@pytest.mark.parametrize("lose", LOSSES)
async def test_no_position_of_a_lost_end_is_used_again(whole: Broken, lose: Losses) -> None:
    await lose(whole)
    archived = {number: await Archive(whole.engine).end(number) for number in range(PARTITIONS)}
    given_out = {line["position"] for line in whole.saved()}
    await whole.mend()
    given_out |= {line["position"] for line in whole.saved()}
    for entry in await whole_log(await whole.open()):
        end = archived[entry.position.partition]
        assert end is not None
        assert entry.position.epoch > end.epoch
        assert entry.position.seq > end.seq
        assert str(entry.position) not in given_out


async def test_an_epoch_of_which_nothing_was_archived_is_not_used_again(whole: Broken) -> None:
    whole.server.kill()
    await whole.server.start()
    lost = await write(await whole.open(), [queued()])
    whole.redis.connection_pool.verify = None  # type: ignore[attr-defined]
    await flushed(whole)
    await whole.mend()
    store = await whole.open()
    assert not await store.read_job(lost)
    assert (await store.log_end(PARTITION_OF_ACME)).epoch == 3


async def test_a_job_that_has_ended_and_is_not_archived_yet_is_left_alone(whole: Broken) -> None:
    store = await whole.open()
    for ref in whole.running:
        await store.append(ref, "shop", new([failed()], job=ref.job, after=2), expected_version=2)
    whole.redis.connection_pool.verify = None  # type: ignore[attr-defined]
    assert await whole.repair().examine() == []


async def test_a_log_that_is_whole_is_left_alone(whole: Broken) -> None:
    before = await whole.server.everything()
    assert await whole.mend() == []
    assert await whole.server.everything() == before
    assert not whole.folder.exists()


async def test_partitions_without_a_fault_are_left_alone(whole: Broken) -> None:
    others = [Keys(number).meta.removesuffix("meta").encode() for number in (0, 1, 3)]
    before = await whole.server.everything()
    await whole.redis.delete(Keys(PARTITION_OF_ACME).meta)
    (repaired,) = await whole.mend()
    assert repaired.fault.partition == PARTITION_OF_ACME
    after = await whole.server.everything()
    for prefix in others:
        assert {key: value for key, value in after.items() if key.startswith(prefix)} == {
            key: value for key, value in before.items() if key.startswith(prefix)
        }


async def test_tenants_keep_their_caps_and_nothing_else_of_before(whole: Broken) -> None:
    keys = Keys(PARTITION_OF_ACME)
    await whole.redis.set(keys.command("acme", "cmd-1"), "h j 1 1-1")
    await whole.redis.delete(keys.meta)
    await whole.mend()
    assert await whole.redis.hget(keys.caps, "acme") == str(CAP).encode()
    assert not await whole.redis.exists(
        keys.command("acme", "cmd-1"), keys.job(whole.builds[2].job)
    )


async def test_an_old_cancel_of_a_lost_job_and_new_work_go_on_as_ever(whole: Broken) -> None:
    await flushed(whole)
    await whole.mend()
    store = await whole.open()
    ref = await write(store, build(2))
    assert (await CommandHandler(store).load(ref)).build_version == "build_v0_2"


# --- what is saved -------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", [forked, without_meta, without_log])
async def test_what_only_redis_has_is_saved_and_named_before_it_is_removed(
    whole: Broken, lose: Losses
) -> None:
    await lose(whole)
    repaired = await whole.mend()
    types = ["JobStarted", "JobStarted"] if lose is forked else ["JobStarted"]
    assert {job: kinds for one in repaired for job, kinds in one.found.unarchived.items()} == {
        ref.job: types for ref in whole.running
    }
    only_here = [line for line in whole.saved() if not line["archived"]]
    assert len(only_here) == len(types) * len(whole.running)
    assert {(line["job"], line["jobversion"]) for line in only_here} >= {
        (ref.job, 3) for ref in whole.running
    }
    assert [one.found.file for one in repaired] == sorted(whole.folder.iterdir())


async def test_older_data_are_saved_too_though_the_archive_has_them(whole: Broken) -> None:
    await set_back(whole)
    in_redis = [
        await whole.redis.xlen(Keys(number).log)  # counted before they are removed
        for number in range(PARTITIONS)
    ]
    repaired = await whole.mend()
    assert [one.found.events for one in repaired] == in_redis
    assert all(line["archived"] for line in whole.saved())
    assert len(whole.saved()) == sum(in_redis)


async def test_an_empty_redis_leaves_no_file(whole: Broken) -> None:
    await flushed(whole)
    repaired = await whole.mend()
    assert all(one.found.file is None for one in repaired)
    assert list(whole.folder.iterdir()) == []


async def test_an_entry_that_cannot_be_read_is_saved_as_it_is(whole: Broken) -> None:
    keys = Keys(PARTITION_OF_ACME)
    await whole.redis.xadd(keys.log, {"who": b"some\xffbody"}, id="1-99")
    await whole.redis.delete(keys.meta)
    repaired = await whole.mend()
    assert [line["fields"] for line in whole.saved() if "fields" in line] == [
        {"who": "some\\xffbody"}
    ]
    assert repaired[0].found.unarchived == {"?": ["?"]}
    await whole.open()


async def test_nothing_is_removed_where_the_file_cannot_be_written(whole: Broken) -> None:
    await forked(whole)
    whole.folder.write_text("a file stands where the folder should")
    repair = whole.repair()
    faults = await repair.examine()
    length = await whole.redis.dbsize()
    with pytest.raises(RepairRefused, match="nothing was removed"):
        await repair.run(faults)
    assert await whole.redis.dbsize() == length


async def test_a_look_beforehand_changes_nothing(whole: Broken) -> None:
    await forked(whole)
    before = await whole.server.everything()
    repair = whole.repair()
    faults = await repair.examine()
    found = [await repair.survey(fault) for fault in faults]
    assert await whole.server.everything() == before
    assert not whole.folder.exists()
    repaired = await repair.run(faults)
    assert [one.unarchived for one in found] == [one.found.unarchived for one in repaired]
    assert [one.living for one in faults] == [
        tuple(end.job for end in one.failed) for one in repaired
    ]


# --- broken off ----------------------------------------------------------------------------------


class Killed(Exception):
    """Where a test ends a repair."""


async def killed(*_: Any, **__: Any) -> None:
    raise Killed


@pytest.mark.parametrize("step", ["_fence", "_save", "_remove", "_make", "_fail_forgotten"])
@pytest.mark.parametrize("lose", [flushed, forked])
async def test_a_repair_that_broke_off_after_any_step_is_finished_by_the_next(
    whole: Broken, monkeypatch: pytest.MonkeyPatch, step: str, lose: Losses
) -> None:
    await lose(whole)
    with monkeypatch.context() as patched:
        done = getattr(Repair, step)

        async def last_step(*args: Any) -> None:
            await done(*args)
            raise Killed

        patched.setattr(Repair, step, last_step)
        with pytest.raises(Killed):
            await whole.mend()
    whole.redis.connection_pool.verify = None  # type: ignore[attr-defined]
    await whole.mend()
    await is_mended(whole)
    if lose is forked:
        saved = {line["id"] for line in whole.saved() if not line["archived"]}
        assert saved >= {later(ref)[0].id for ref in whole.running}


async def test_jobs_that_a_repair_did_not_come_to_fail_are_failed_by_the_next(
    whole: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    await flushed(whole)
    with monkeypatch.context() as patched:

        async def none(*args: Any) -> tuple[()]:
            return ()

        patched.setattr(Repair, "_fail_forgotten", none)
        await whole.mend()
    whole.redis.connection_pool.verify = None  # type: ignore[attr-defined]
    faults = await whole.repair().examine()
    assert [fault.is_broken for fault in faults] == [False] * PARTITIONS
    await whole.mend()
    await is_mended(whole)


async def test_two_repairs_at_once_repair_once(whole: Broken) -> None:
    await forked(whole)
    faults = await whole.repair().examine()
    results: list[list[Repaired]] = []

    async def mend() -> None:
        redis = connect_redis(whole.server.url)
        results.append(await Repair(redis, whole.engine, whole.folder).run(faults))
        await redis.aclose()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mend)
        tasks.start_soon(mend)
    ended = [one.job.ref for result in results for repaired in result for one in repaired.failed]
    assert sorted(ended, key=str) == sorted(whole.running, key=str)
    assert len(list(whole.folder.iterdir())) == PARTITIONS
    await is_mended(whole)


async def test_a_fault_that_somebody_else_has_mended_since_is_left_alone(whole: Broken) -> None:
    await forked(whole)
    faults = await whole.repair().examine()
    await whole.mend()
    before = await whole.server.everything()
    whole.redis.connection_pool.verify = None  # type: ignore[attr-defined]
    again = await whole.repair().run(faults)
    assert not any(one.found.events or one.failed for one in again)
    assert await whole.server.everything() == before


async def test_once_a_partition_is_made_anew_its_lost_end_can_never_be_archived(
    whole: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    await forked(whole)
    lost = await stream_end(whole.redis, Keys(PARTITION_OF_ACME).log)
    monkeypatch.setattr(repair, "open_log", killed)
    with pytest.raises(Killed):
        await whole.mend()
    registered = await Archive(whole.engine).register.one(PARTITION_OF_ACME)
    assert not registered.rightful(Position.at(PARTITION_OF_ACME, str(lost)))


# --- whoever had the log open --------------------------------------------------------------------


async def test_while_a_partition_is_repaired_nobody_appends_to_it(
    whole: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = connect_redis(whole.server.url)
    store = await open_log(others, Archive(whole.engine), partitions=PARTITIONS)
    await forked(whole)
    monkeypatch.setattr(Repair, "_save", killed)
    with pytest.raises(Killed):
        await whole.mend()
    before = await whole.redis.xlen(Keys(0).log)
    with pytest.raises(LogUnverified):
        await write(store, [queued()], tenant="initech")
    assert await whole.redis.xlen(Keys(0).log) == before
    await others.aclose()


async def test_a_worker_of_before_can_append_no_more(whole: Broken) -> None:
    others = connect_redis(whole.server.url)
    store = await open_log(others, Archive(whole.engine), partitions=PARTITIONS)
    (claim,) = await store.work.claim(0, "w", free_slots=1, lease_ms=60_000)
    await forked(whole)
    await whole.mend()
    before = await store.log_end(0)
    for version in (2, 3):
        with pytest.raises((VersionConflict, Fenced)):
            await store.append(
                claim.ref, "shop", later(claim.ref), expected_version=version, claim=claim
            )
    with pytest.raises(Fenced):
        await store.progress(claim, "log", {"text": "still here"}, time=NOON)
    assert await store.log_end(0) == before
    await others.aclose()


async def test_a_subscriber_of_a_lost_end_is_told_where_the_history_goes_on(
    whole: Broken,
) -> None:
    await forked(whole)
    keys = Keys(PARTITION_OF_ACME)
    epoch, seq = await whole.redis.hmget(keys.meta, "epoch", "seq")
    seen = Position(keys.partition, int(epoch or 0), int(seq or 0))
    archived = await Archive(whole.engine).end(keys.partition)
    await whole.mend()
    hub = Hub(await whole.open(), whole.redis)
    reading = subscribe(hub, partition=keys.partition, after=seen)
    with anyio.fail_after(30):
        assert await anext(reading) == Reset(archived)
        following = await anext(reading)
    assert isinstance(following, LogEntry)
    assert following.event.type == "JobFailed"
    await reading.aclose()


async def test_a_follower_of_a_lost_end_that_has_grown_again_as_long_is_told_so(
    whole: Broken,
) -> None:
    ref = whole.running[PARTITION_OF_ACME]
    await unarchived_end(whole)
    others = connect_redis(whole.server.url)
    hub = Hub(await open_log(others, Archive(whole.engine), partitions=PARTITIONS), others)
    following = follow(hub, ref)
    with anyio.fail_after(30):
        seen = [(await anext(following)).id for _ in range(3)]
        await flushed(whole)
        await whole.mend()
        hub._wake_all()
        assert await anext(following) == Reset()
        anew = [await anext(following) for _ in range(3)]
    assert [one.id for one in anew] == seen == ["1-0", "2-0", "3-0"]
    assert isinstance(anew[-1], JobEvent)
    assert anew[-1].event.type == "JobFailed"
    await following.aclose()
    await others.aclose()


# --- refusals ------------------------------------------------------------------------------------


async def test_a_redis_with_another_log_is_not_touched(whole: Broken) -> None:
    await whole.redis.hset(Keys(PARTITION_OF_ACME).meta, "lineage", "another")
    await whole.redis.delete(Keys(0).meta)
    assert "found lineage another" in await whole.refuses()


async def test_a_log_of_another_format_is_not_touched(whole: Broken) -> None:
    await whole.redis.hset(Keys(0).meta, "format", "1")
    assert "use the Headrace that made it" in await whole.refuses()


async def test_a_log_whose_archive_was_lost_is_not_touched(whole: Broken) -> None:
    store = await whole.open()
    housekeeper = Housekeeper(store, keep_s=0, keep_events=1, lease_s=10)
    assert await housekeeper.trim(PARTITION_OF_ACME)
    whole.redis.connection_pool.verify = None  # type: ignore[attr-defined]
    await unarchived_end(whole)
    await execute(whole.engine, "DELETE FROM headrace.events WHERE seq > 3")
    assert "restore a newer backup" in await whole.refuses()
    await execute(whole.engine, "DELETE FROM headrace.events")
    assert "restore a newer backup" in await whole.refuses()
    await execute(whole.engine, "TRUNCATE headrace.log_partitions CASCADE")
    assert "restore a newer backup" in await whole.refuses()


async def test_a_whole_log_that_postgres_does_not_know_needs_no_repair(whole: Broken) -> None:
    await execute(
        whole.engine,
        f"TRUNCATE headrace.events, {READ_MODEL}",
        "TRUNCATE headrace.log_partitions CASCADE",
    )
    assert await whole.mend() == []
    await whole.open()
