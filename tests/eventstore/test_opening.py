"""Opening a log: every row of the table in `verification.py`, and openers that meet."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Archive,
    EventStore,
    Housekeeper,
    LogMissing,
    LogUnverified,
    connect_redis,
    open_log,
)
from eventstore.keys import Keys
from eventstore.reading import hash_fields, stream_exact
from eventstore.register import Epoch, Registration
from eventstore.scripts import Scripts
from projector import Projector
from schemas import JobRef
from tests.eventstore.killable import KillableServer
from tests.histories import TENANT, failed, queued, started
from tests.logs import PARTITIONS
from tests.projector.contents import READ_MODEL, contents, execute, whole_log
from tests.projector.writing import ONE_PER_PARTITION, write

OURS = ONE_PER_PARTITION.index(TENANT)
OPENINGS = int(os.environ.get("HEADRACE_OPENINGS", "8"))
META, LOG = f"hr:{{{OURS}}}:meta", f"hr:{{{OURS}}}:log"
LINEAGE = "018f0000-0000-7000-8000-00000000000a"

Open = Callable[[], Awaitable[EventStore]]


@pytest.fixture
async def open_again(server: KillableServer, archive: Archive) -> AsyncIterator[Open]:
    """Opens the log as a process that has just started does, over connections of its own."""
    async with AsyncExitStack() as stack:

        async def opened() -> EventStore:
            redis = connect_redis(server.url)
            stack.push_async_callback(redis.aclose)
            return await open_log(redis, archive, partitions=PARTITIONS, tenant_cap=1_000)

        yield opened


@pytest.fixture
async def log(open_again: Open) -> EventStore:
    """A log on a server of the test's own."""
    return await open_again()


@asynccontextmanager
async def nothing_written(server: KillableServer, archive: Archive) -> AsyncIterator[None]:
    """Neither to the partition nor to its entry in the register while the block runs."""

    async def there() -> object:
        registered = [one for one in await archive.register.all() if one.partition == OURS]
        return await server.everything(f"hr:{{{OURS}}}:*"), registered

    before = await there()
    yield
    assert await there() == before


async def restarted(server: KillableServer) -> None:
    server.kill()
    await server.start()


async def three_events(log: EventStore) -> JobRef:
    return await write(log, [queued(), started(), started(2)])


async def appends(log: EventStore, job: JobRef, *, after: int) -> str:
    """Append one event more; the entry id it got."""
    await write(log, [started(after)], job=job.job, after=after)
    return (await log.log_end(OURS)).entry_id


async def archived(log: EventStore, engine: AsyncEngine) -> None:
    await Projector(log, engine).catch_up()


async def trimmed(log: EventStore) -> int:
    return await Housekeeper(log, keep_s=0, keep_events=1_000_000, lease_s=60).trim(OURS)


async def epochs(archive: Archive) -> list[tuple[int, int]]:
    """Number and first seq of each registered epoch."""
    return [(one.number, one.start_seq) for one in (await archive.register.one(OURS)).epochs]


async def newest_epochs(archive: Archive) -> list[int]:
    """The number of each partition's newest epoch."""
    return [one.newest.number for one in await archive.register.all()]


async def empty_postgres(engine: AsyncEngine) -> None:
    await execute(
        engine,
        "TRUNCATE headrace.log_partitions, headrace.log_epochs, headrace.events, " + READ_MODEL,
    )


# --- a new log ------------------------------------------------------------------------------------


async def test_where_there_is_no_log_one_is_registered_and_made(
    server: KillableServer, archive: Archive, open_again: Open
) -> None:
    log = await open_again()
    registered = await archive.register.all()
    assert [one.partition for one in registered] == list(range(PARTITIONS))
    for one in registered:
        assert (one.state, one.epochs) == ("open", (Epoch(1, 1),))
        found = await server.command("HGET", f"hr:{{{one.partition}}}:meta", "lineage")
        assert found.decode() == one.lineage
    await three_events(log)
    assert (await log.log_end(OURS)).entry_id == "1-3"


async def test_a_log_that_was_registered_and_not_made_is_made_as_it_was_registered(
    server: KillableServer, archive: Archive, open_again: Open
) -> None:
    await archive.register.add(
        [Registration(number, LINEAGE, "creating", (Epoch(1, 1),)) for number in range(PARTITIONS)]
    )
    await open_again()
    assert await server.command("HGET", META, "lineage") == LINEAGE.encode()
    assert (await archive.register.one(OURS)).state == "open"


async def test_a_log_that_was_made_and_not_marked_open_is_marked_open(
    log: EventStore, archive: Archive, engine: AsyncEngine, open_again: Open
) -> None:
    before = await archive.register.all()
    job = await three_events(log)
    await execute(engine, "UPDATE headrace.log_partitions SET state = 'creating'")
    again = await open_again()
    assert await archive.register.all() == before
    assert await appends(again, job, after=3) == "1-4"


async def test_a_stream_where_a_log_is_to_be_made_is_refused(
    server: KillableServer, open_again: Open
) -> None:
    await server.command("XADD", LOG, "1-1", "some", "body's")
    with pytest.raises(LogUnverified):
        await open_again()
    assert await server.command("XLEN", LOG) == 1


async def test_two_that_make_a_log_at_once_make_one(archive: Archive, open_again: Open) -> None:
    logs: list[EventStore] = []

    async def make() -> None:
        logs.append(await open_again())

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(make)
    assert await epochs(archive) == [(1, 1)]
    for log in logs:
        await three_events(log)
    assert [entry.position.seq for entry in await whole_log(logs[0])] == list(range(1, 13))


async def test_who_was_overtaken_in_making_a_log_leaves_the_one_that_is_there(
    open_again: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, overtaken = Scripts.__call__, list[EventStore]()

    async def slowly(self: Scripts, name: str, keys: list[str], args: list[Any]) -> Any:
        if name == "create" and META in keys and not overtaken:
            overtaken.append(await make())
        return await call(self, name, keys, args)

    async def make() -> EventStore:
        monkeypatch.setattr(Scripts, "__call__", call)
        log = await open_again()
        await three_events(log)
        return log

    monkeypatch.setattr(Scripts, "__call__", slowly)
    log = await open_again()
    assert len(overtaken) == 1
    assert (await log.log_end(OURS)).entry_id == "1-3"


async def test_what_most_tests_begin_with_is_a_log_as_opening_makes_it(
    store: EventStore, redis: Redis, archive: Archive, engine: AsyncEngine
) -> None:
    async def there() -> object:
        keys, registered = [Keys(number) for number in range(PARTITIONS)], await register.all()
        fields = ("lineage", "epoch", "seq", "run", "format", "partitions", "opened")
        metas = [await hash_fields(redis, one.meta, *fields) for one in keys]
        assert [meta.pop(0) for meta in metas] == [one.lineage for one in registered]
        assert all(int(meta.pop() or 0) > 0 for meta in metas)
        names = {name async for name in redis.scan_iter()} - {one.meta.encode() for one in keys}
        dumps = {name: await redis.dump(name) for name in names}
        return metas, dumps, [(one.partition, one.state, one.epochs) for one in registered]

    register = archive.register
    made_for_tests = await there()
    await redis.flushall()
    await execute(engine, "TRUNCATE headrace.log_partitions CASCADE")
    opened = await open_log(redis, archive, partitions=PARTITIONS)
    assert await there() == made_for_tests
    assert opened.verification.server == store.verification.server


# --- a log that is known --------------------------------------------------------------------------


async def test_a_log_on_the_server_that_it_was_opened_on_goes_on_in_its_epoch(
    log: EventStore, archive: Archive, open_again: Open
) -> None:
    job = await three_events(log)
    again = await open_again()
    assert await appends(again, job, after=3) == "1-4"
    assert await appends(log, job, after=4) == "1-5"
    assert await epochs(archive) == [(1, 1)]


async def test_a_log_on_a_server_that_was_restarted_goes_on_in_a_new_epoch(
    log: EventStore, server: KillableServer, archive: Archive, open_again: Open
) -> None:
    job = await three_events(log)
    await restarted(server)
    assert await appends(await open_again(), job, after=3) == "2-4"
    assert await epochs(archive) == [(1, 1), (2, 4)]


async def test_an_empty_redis_is_refused_when_postgres_knows_a_log(
    log: EventStore, server: KillableServer, archive: Archive, open_again: Open
) -> None:
    await server.command("FLUSHALL")
    async with nothing_written(server, archive):
        with pytest.raises(LogMissing):
            await open_again()


async def test_a_redis_that_lost_one_partition_is_refused(
    log: EventStore, server: KillableServer, archive: Archive, open_again: Open
) -> None:
    await server.command("DEL", META, LOG)
    async with nothing_written(server, archive):
        with pytest.raises(LogMissing):
            await open_again()


async def test_the_log_of_another_lineage_is_refused(
    log: EventStore, server: KillableServer, archive: Archive, open_again: Open
) -> None:
    await server.command("HSET", META, "lineage", LINEAGE)
    async with nothing_written(server, archive):
        with pytest.raises(LogUnverified, match="lineage"):
            await open_again()


async def test_a_log_in_a_format_of_the_future_is_refused(
    log: EventStore, server: KillableServer, archive: Archive, open_again: Open
) -> None:
    await server.command("HSET", META, "format", "99")
    async with nothing_written(server, archive):
        with pytest.raises(LogUnverified, match="format 99"):
            await open_again()


async def test_a_log_that_was_archived_and_trimmed_to_nothing_goes_on(
    log: EventStore, server: KillableServer, engine: AsyncEngine, open_again: Open
) -> None:
    job = await three_events(log)
    await archived(log, engine)
    assert await trimmed(log) == 3
    assert await appends(await open_again(), job, after=3) == "1-4"
    await restarted(server)
    assert await appends(await open_again(), job, after=4) == "2-5"


@pytest.mark.parametrize("restarts", [False, True], ids=["same server", "restarted"])
async def test_a_log_whose_events_were_deleted_before_they_were_archived_is_refused(
    log: EventStore, server: KillableServer, archive: Archive, open_again: Open, restarts: bool
) -> None:
    await three_events(log)
    await server.command("DEL", LOG)
    if restarts:
        await restarted(server)
    async with nothing_written(server, archive):
        with pytest.raises(LogUnverified, match="there is no event"):
            await open_again()


async def test_a_log_without_its_newest_events_is_refused(
    log: EventStore, server: KillableServer, archive: Archive, open_again: Open
) -> None:
    await three_events(log)
    await server.command("XDEL", LOG, "1-3")
    async with nothing_written(server, archive):
        with pytest.raises(LogUnverified, match="is 1-2"):
            await open_again()


@pytest.mark.parametrize("seq", [1, 2, 3])
async def test_a_log_that_differs_from_its_archive_by_one_event_is_refused(
    log: EventStore,
    server: KillableServer,
    archive: Archive,
    engine: AsyncEngine,
    open_again: Open,
    seq: int,
) -> None:
    await three_events(log)
    await archived(log, engine)
    await execute(engine, f"UPDATE headrace.events SET id = '{LINEAGE}' WHERE seq = {seq}")
    async with nothing_written(server, archive):
        with pytest.raises(LogUnverified, match=f"at 1-{seq} stands another event"):
            await open_again()


async def test_a_log_that_lacks_an_archived_event_in_its_midst_is_refused(
    log: EventStore, server: KillableServer, engine: AsyncEngine, open_again: Open
) -> None:
    await three_events(log)
    await archived(log, engine)
    await server.command("XDEL", LOG, "1-2")
    with pytest.raises(LogUnverified, match="at 1-2"):
        await open_again()


async def test_a_log_is_opened_beside_archived_events_that_only_a_newer_version_can_read(
    log: EventStore, engine: AsyncEngine, open_again: Open
) -> None:
    job = await three_events(log)
    await archived(log, engine)
    await execute(engine, "UPDATE headrace.events SET data = 'nothing we know' WHERE seq = 3")
    assert await appends(await open_again(), job, after=3) == "1-4"


# --- Redis was set back ---------------------------------------------------------------------------


async def test_a_redis_set_back_before_its_archive_is_refused_and_nothing_is_appended(
    log: EventStore, server: KillableServer, archive: Archive, engine: AsyncEngine, open_again: Open
) -> None:
    job = await three_events(log)
    server.kill()
    server.keep_data()
    await server.start()
    await appends(log, job, after=3)
    await archived(log, engine)
    server.kill()
    server.put_data_back()
    await server.start()
    async with nothing_written(server, archive):
        with pytest.raises(LogUnverified, match="Redis has lost events"):
            await open_again()
        for _ in range(2):
            with pytest.raises(LogUnverified, match="Redis has lost events"):
                await appends(log, job, after=4)


async def test_a_redis_set_back_to_where_its_archive_ends_uses_no_position_again(
    log: EventStore, server: KillableServer, archive: Archive, engine: AsyncEngine, open_again: Open
) -> None:
    job = await three_events(log)
    await archived(log, engine)
    server.kill()
    server.keep_data()
    await server.start()
    lost = await appends(log, job, after=3)
    server.kill()
    server.put_data_back()
    await server.start()
    assert (lost, await appends(await open_again(), job, after=3)) == ("2-4", "3-4")
    assert await epochs(archive) == [(1, 1), (2, 4), (3, 4)]


async def test_a_refused_store_uses_up_no_connections(
    log: EventStore, server: KillableServer, archive: Archive
) -> None:
    job = await three_events(log)
    await server.command("HSET", META, "lineage", LINEAGE)
    await restarted(server)
    for _ in range(log.redis.connection_pool.max_connections + 1):
        with pytest.raises(LogUnverified):
            await appends(log, job, after=3)


# --- Postgres was made anew, or set back ----------------------------------------------------------


async def test_a_whole_log_is_adopted_with_its_epochs_by_an_empty_postgres(
    log: EventStore, server: KillableServer, archive: Archive, engine: AsyncEngine, open_again: Open
) -> None:
    job = await three_events(log)
    await restarted(server)
    await appends(log, job, after=3)
    await restarted(server)
    await restarted(server)
    await appends(log, job, after=4)
    await archived(log, engine)
    before = await contents(engine)
    lineages = [one.lineage for one in await archive.register.all()]
    await empty_postgres(engine)
    again = await open_again()
    assert [one.lineage for one in await archive.register.all()] == lineages
    assert await epochs(archive) == [(1, 1), (2, 4), (3, 5)]
    await archived(again, engine)
    assert await contents(engine) == before
    assert await appends(again, job, after=5) == "3-6"


async def test_a_log_whose_beginning_is_trimmed_is_refused_by_an_empty_postgres(
    log: EventStore, server: KillableServer, archive: Archive, engine: AsyncEngine, open_again: Open
) -> None:
    job = await three_events(log)
    await archived(log, engine)
    await trimmed(log)
    await appends(log, job, after=3)
    await empty_postgres(engine)
    async with nothing_written(server, archive):
        with pytest.raises(LogUnverified, match="has only 1 of 4 events"):
            await open_again()


@pytest.mark.parametrize("restarts", [False, True], ids=["same server", "restarted"])
async def test_a_postgres_set_back_learns_what_the_log_still_has(
    log: EventStore,
    server: KillableServer,
    archive: Archive,
    engine: AsyncEngine,
    open_again: Open,
    restarts: bool,
) -> None:
    job = await three_events(log)
    await archived(log, engine)
    await restarted(server)
    await appends(log, job, after=3)
    await restarted(server)
    await appends(log, job, after=4)
    await execute(engine, "DELETE FROM headrace.log_epochs WHERE epoch > 1")
    if restarts:
        await restarted(server)
    again = await open_again()
    assert await epochs(archive) == [(1, 1), (2, 4), (3, 5)] + [(4, 6)] * restarts
    await archived(again, engine)
    assert [event["seq"] for event in (await contents(engine))["events"]] == [1, 2, 3, 4, 5]


async def test_a_postgres_set_back_before_the_beginning_of_the_log_is_refused(
    log: EventStore, server: KillableServer, archive: Archive, engine: AsyncEngine, open_again: Open
) -> None:
    job = await three_events(log)
    await archived(log, engine)
    await trimmed(log)
    await appends(log, job, after=3)
    await execute(engine, "DELETE FROM headrace.events WHERE seq > 2")
    async with nothing_written(server, archive):
        with pytest.raises(LogUnverified, match="begins at 1-4, and its archive ends at 1-2"):
            await open_again()


# --- openers that meet, and openers that die ------------------------------------------------------


async def test_two_that_open_a_restarted_server_at_once_begin_one_epoch(
    log: EventStore, server: KillableServer, archive: Archive, open_again: Open
) -> None:
    job = await three_events(log)
    await restarted(server)
    logs = [log]

    async def opens() -> None:
        logs.append(await open_again())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(log.log_end, OURS)
        for _ in range(3):
            tasks.start_soon(opens)
    assert await epochs(archive) == [(1, 1), (2, 4)]
    for after, one in enumerate(logs, start=3):
        assert await appends(one, job, after=after) == f"2-{after + 1}"


async def test_who_opens_after_one_that_died_halfway_goes_on_in_the_epoch_that_it_began(
    log: EventStore,
    server: KillableServer,
    archive: Archive,
    open_again: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Died(Exception):
        pass

    call = Scripts.__call__

    async def dies(self: Scripts, name: str, keys: list[str], args: list[Any]) -> Any:
        if name == "reopen" and META in keys:
            raise Died
        return await call(self, name, keys, args)

    job = await three_events(log)
    await restarted(server)
    with monkeypatch.context() as patched:
        patched.setattr(Scripts, "__call__", dies)
        with pytest.raises(Died):
            await open_again()
    assert await newest_epochs(archive) == [2, 2, 2, 2]
    reached = [await server.command("HGET", f"hr:{{{number}}}:meta", "epoch") for number in (1, 2)]
    assert reached == [b"2", b"1"]
    again = await open_again()
    assert await newest_epochs(archive) == [2, 2, 2, 2]
    assert await appends(again, job, after=3) == "2-4"


async def test_a_fault_in_one_partition_begins_no_epoch_in_another(
    log: EventStore, server: KillableServer, archive: Archive, open_again: Open
) -> None:
    await restarted(server)
    await server.command("HSET", META, "lineage", LINEAGE)
    before = await server.everything()
    with pytest.raises(LogUnverified, match="lineage"):
        await open_again()
    assert await newest_epochs(archive) == [1, 1, 1, 1]
    assert await server.everything() == before


async def test_a_log_that_others_trim_to_nothing_while_it_is_compared_is_no_false_alarm(
    log: EventStore,
    engine: AsyncEngine,
    open_again: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def overtaken(*args: Any) -> Any:
        await trimmed(log)
        return await stream_exact(*args)

    await three_events(log)
    await archived(log, engine)
    monkeypatch.setattr("eventstore.verification.stream_exact", overtaken)
    await open_again()


@pytest.mark.timeout(300)
async def test_opening_beside_writers_and_a_housekeeper_raises_no_false_alarm(
    log: EventStore, archive: Archive, engine: AsyncEngine, server: KillableServer
) -> None:
    async def writes() -> None:
        while True:
            await write(log, [queued(), failed()])

    async def archives_and_trims() -> None:
        while True:
            await archived(log, engine)
            await trimmed(log)

    redis = connect_redis(server.url)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writes)
        tasks.start_soon(archives_and_trims)
        for _ in range(OPENINGS):
            await open_log(redis, archive, partitions=PARTITIONS)
        tasks.cancel_scope.cancel()
    await redis.aclose()
    assert await epochs(archive) == [(1, 1)]
    assert (await log.log_end(OURS)).seq > 0
