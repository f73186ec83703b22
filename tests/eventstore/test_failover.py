"""The server of an open log is restarted, replaced, or superseded by its replica."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote, unquote

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Archive,
    EventStore,
    LogMissing,
    LogUnverified,
    RedisUnavailable,
    connect_postgres,
    connect_redis,
    open_log,
)
from projector import Projector
from projector.errors import LogForked
from schemas import JobRef
from tests.eventstore.killable import Address, KillableServer
from tests.histories import TENANT, queued, started
from tests.logs import PARTITIONS
from tests.places import quick_folder
from tests.projector.contents import contents, execute, whole_log
from tests.projector.writing import ONE_PER_PARTITION, write

pytestmark = pytest.mark.both_servers

OURS = ONE_PER_PARTITION.index(TENANT)
POSTGRES_SOCKET = ".s.PGSQL.5432"

Open = Callable[[str], Awaitable[EventStore]]


@pytest.fixture
async def open_at(archive: Archive) -> AsyncIterator[Open]:
    """Opens the log at a URL as a process that has just started does."""
    async with AsyncExitStack() as stack:

        async def opened(url: str) -> EventStore:
            redis = connect_redis(url)
            stack.push_async_callback(redis.aclose)
            return await open_log(redis, archive, partitions=PARTITIONS, tenant_cap=1_000)

        yield opened


@pytest.fixture
async def other(program: Path) -> AsyncIterator[KillableServer]:
    """A second server, empty."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir=quick_folder()) as folder:
        one = KillableServer(Path(folder), program)
        await one.start()
        yield one
        one.kill()


@pytest.fixture
async def address(server: KillableServer) -> AsyncIterator[Address]:
    """Where everybody looks for the log: the first server, until it is switched."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir=quick_folder()) as folder:
        yield Address(Path(folder) / "log.sock", server)


@pytest.fixture
async def log(
    address: Address, open_at: Open, server: KillableServer, other: KillableServer
) -> EventStore:
    """A log on the first server, which has had a replica: its first one changes its identity."""
    await other.replicate(server)
    await other.promote()
    await other.command("FLUSHALL")
    return await open_at(address.url)


async def three_events(log: EventStore) -> JobRef:
    return await write(log, [queued(), started(), started(2)])


async def append(log: EventStore, job: JobRef, *, after: int) -> str:
    """Append one event more; the entry id it got."""
    event = started(after)
    await write(log, [event], job=job.job, after=after)
    (_, *_, last) = await log.read_log(OURS, None)
    assert last.event.version == after + 1
    return last.position.entry_id


async def ids(log: EventStore) -> list[str]:
    """The entry ids of our partition's log."""
    return [entry.position.entry_id for entry in await log.read_log(OURS, None)]


async def archived_ids(engine: AsyncEngine) -> list[str]:
    return [f"{row['epoch']}-{row['seq']}" for row in (await contents(engine))["events"]]


async def epochs(archive: Archive) -> list[tuple[int, int]]:
    """Number and first seq of each registered epoch."""
    return [(one.number, one.start_seq) for one in (await archive.register.one(OURS)).epochs]


async def cut_connections(server: KillableServer) -> None:
    """As a failover does it: whoever had a connection to this server makes a new one."""
    await server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


# --- a restart ------------------------------------------------------------------------------------


async def test_the_next_append_after_a_restart_begins_a_new_epoch_by_itself(
    log: EventStore, server: KillableServer, archive: Archive
) -> None:
    job = await three_events(log)
    for restarts in range(1, 4):
        server.kill()
        await server.start()
        assert await append(log, job, after=2 + restarts) == f"{1 + restarts}-{3 + restarts}"
    assert await ids(log) == ["1-1", "1-2", "1-3", "2-4", "3-5", "4-6"]
    assert [event.version for event in await log.read_job(job)] == [1, 2, 3, 4, 5, 6]
    assert await epochs(archive) == [(1, 1), (2, 4), (3, 5), (4, 6)]


async def test_many_that_append_after_a_restart_begin_one_epoch(
    log: EventStore, server: KillableServer, archive: Archive
) -> None:
    await three_events(log)
    server.kill()
    await server.start()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(three_events, log)
    assert await epochs(archive) == [(1, 1), (2, 4)]
    assert [entry.position.seq for entry in await whole_log(log)] == list(range(1, 64))


async def test_while_postgres_is_away_nothing_is_appended_to_a_restarted_redis(
    server: KillableServer, database_url: str
) -> None:
    base, _, real = database_url.partition("?host=")
    with tempfile.TemporaryDirectory(prefix="hr-", dir=quick_folder()) as folder:
        link = Path(folder) / POSTGRES_SOCKET
        link.symlink_to(Path(unquote(real)) / POSTGRES_SOCKET)
        engine = connect_postgres(f"{base}?host={quote(folder)}")
        redis = connect_redis(server.url)
        log = await open_log(redis, Archive(engine), partitions=PARTITIONS)
        job = await three_events(log)
        await engine.dispose()
        link.rename(link.with_suffix(".away"))
        server.kill()
        await server.start()
        before = await server.everything()
        for _ in range(2):
            with pytest.raises(RedisUnavailable, match="cannot be verified yet"):
                await append(log, job, after=3)
        assert await server.everything() == before
        link.with_suffix(".away").rename(link)
        assert await append(log, job, after=3) == "2-4"
        await redis.aclose()
        await engine.dispose()


# --- another server under the address -------------------------------------------------------------


async def test_an_empty_server_under_the_address_stays_empty(
    log: EventStore, server: KillableServer, other: KillableServer, address: Address
) -> None:
    job = await three_events(log)
    address.switch(other)
    await cut_connections(server)
    for _ in range(2):
        with pytest.raises(LogMissing):
            await append(log, job, after=3)
    assert await other.everything() == {}
    address.switch(server)
    assert await append(log, job, after=3) == "1-4"


async def test_a_server_with_another_log_under_the_address_keeps_that_as_it_is(
    server: KillableServer,
    other: KillableServer,
    address: Address,
    engine: AsyncEngine,
    open_at: Open,
) -> None:
    await three_events(await open_at(other.url))
    await execute(engine, "TRUNCATE headrace.log_partitions CASCADE")
    log = await open_at(address.url)
    job = await three_events(log)
    before = await other.everything()
    address.switch(other)
    await cut_connections(server)
    for _ in range(2):
        with pytest.raises(LogUnverified, match="lineage"):
            await append(log, job, after=3)
    assert await other.everything() == before


# --- a replica is promoted ------------------------------------------------------------------------


async def test_a_promoted_replica_that_has_everything_goes_on_in_a_new_epoch(
    log: EventStore, server: KillableServer, other: KillableServer, address: Address
) -> None:
    await other.replicate(server)
    job = await three_events(log)
    await server.replicated()
    server.kill()
    await other.promote()
    address.switch(other)
    assert await append(log, job, after=3) == "2-4"
    assert await ids(log) == ["1-1", "1-2", "1-3", "2-4"]


async def test_a_promoted_replica_that_lacks_archived_events_is_refused(
    log: EventStore,
    server: KillableServer,
    other: KillableServer,
    address: Address,
    engine: AsyncEngine,
) -> None:
    await other.replicate(server)
    job = await three_events(log)
    await server.replicated()
    await other.promote()
    await append(log, job, after=3)
    await Projector(log, engine).catch_up()
    before = await other.everything(f"hr:{{{OURS}}}:*")
    server.kill()
    address.switch(other)
    for _ in range(2):
        with pytest.raises(LogUnverified, match="Redis has lost events"):
            await append(log, job, after=4)
    assert await other.everything(f"hr:{{{OURS}}}:*") == before


async def test_what_a_superseded_server_still_takes_is_never_archived(
    log: EventStore,
    server: KillableServer,
    other: KillableServer,
    address: Address,
    engine: AsyncEngine,
    open_at: Open,
) -> None:
    await other.replicate(server)
    job = await three_events(log)
    await server.replicated()
    isolated = await open_at(server.url)
    await other.promote()
    await append(log, job, after=3)
    address.switch(other)
    await cut_connections(server)
    assert await append(log, job, after=3) == "2-4"
    assert await append(isolated, job, after=4) == "1-5"
    with pytest.raises(LogForked, match="1-4"):
        await Projector(isolated, engine).catch_up()
    assert await archived_ids(engine) == []
    await Projector(log, engine).catch_up()
    assert await archived_ids(engine) == ["1-1", "1-2", "1-3", "2-4"]


async def test_a_superseded_server_that_took_more_is_not_opened_again(
    log: EventStore,
    server: KillableServer,
    other: KillableServer,
    address: Address,
    open_at: Open,
) -> None:
    await other.replicate(server)
    job = await three_events(log)
    await server.replicated()
    await other.promote()
    await append(log, job, after=3)
    address.switch(other)
    await cut_connections(server)
    await append(log, job, after=3)
    before = await server.everything(f"hr:{{{OURS}}}:*")
    with pytest.raises(LogUnverified, match="1-4"):
        await open_at(server.url)
    address.switch(server)
    other.kill()
    with pytest.raises(LogUnverified, match="1-4"):
        await append(log, job, after=4)
    assert await server.everything(f"hr:{{{OURS}}}:*") == before


async def test_a_superseded_server_that_took_nothing_more_goes_on_in_a_newer_epoch(
    log: EventStore,
    server: KillableServer,
    other: KillableServer,
    address: Address,
    archive: Archive,
    engine: AsyncEngine,
    open_at: Open,
) -> None:
    await other.replicate(server)
    job = await three_events(log)
    await server.replicated()
    await other.promote()
    await open_at(other.url)
    assert await epochs(archive) == [(1, 1), (2, 4)]
    again = await open_at(server.url)
    assert await append(again, job, after=3) == "3-4"
    assert await epochs(archive) == [(1, 1), (2, 4), (3, 4)]
    await Projector(again, engine).catch_up()
    assert await archived_ids(engine) == ["1-1", "1-2", "1-3", "3-4"]


async def test_a_process_whose_connections_to_the_superseded_server_live_goes_over_to_the_new_one(
    log: EventStore, server: KillableServer, other: KillableServer, address: Address
) -> None:
    await other.replicate(server)
    job = await three_events(log)
    await server.replicated()
    held = await log.redis.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    await log.log_end(OURS)
    await other.promote()
    address.switch(other)
    # One connection breaks, and its successor finds the new server; the others live on.
    await held.disconnect()
    await held.connect()
    for after in range(3, 8):
        assert await append(log, job, after=after) == f"2-{after + 1}"
    await log.redis.connection_pool.release(held)


async def test_a_server_that_became_a_replica_is_left_for_its_primary(
    log: EventStore, server: KillableServer, other: KillableServer, address: Address
) -> None:
    await other.replicate(server)
    job = await three_events(log)
    await server.replicated()
    await other.promote()
    await server.replicate(other)
    with pytest.raises(RedisUnavailable, match="read-only replica"):
        await append(log, job, after=3)
    address.switch(other)
    assert await append(log, job, after=3) == "2-4"


async def test_there_and_back_again_without_a_broken_connection_begins_an_epoch_each_way(
    log: EventStore,
    server: KillableServer,
    other: KillableServer,
    address: Address,
    archive: Archive,
    open_at: Open,
) -> None:
    await other.replicate(server)
    job = await three_events(log)
    await server.replicated()
    connection = await log.redis.client_id()
    await other.promote()
    address.switch(other)
    elsewhere = await open_at(address.url)
    assert await append(elsewhere, job, after=3) == "2-4"
    await server.replicate(other)
    await other.replicated()
    await server.promote()
    address.switch(server)
    assert await log.redis.client_id() == connection
    assert await append(log, job, after=4) == "3-5"
    other.kill()
    assert await append(elsewhere, job, after=5) == "3-6"
    assert await epochs(archive) == [(1, 1), (2, 4), (3, 5)]
    assert await ids(log) == ["1-1", "1-2", "1-3", "2-4", "3-5", "3-6"]


async def test_a_server_that_was_a_replica_for_a_while_uses_no_position_again(
    log: EventStore, server: KillableServer, other: KillableServer
) -> None:
    await other.replicate(server)
    job = await three_events(log)
    await server.replicated()
    await other.promote()
    lost = await append(log, job, after=3)
    await server.replicate(other)
    await server.promote()
    assert (lost, await append(log, job, after=3)) == ("1-4", "2-4")


async def test_an_end_that_two_failovers_left_behind_is_not_rightful(
    log: EventStore,
    server: KillableServer,
    other: KillableServer,
    archive: Archive,
    engine: AsyncEngine,
    open_at: Open,
) -> None:
    await other.replicate(server)
    job = await three_events(log)
    await server.replicated()
    await other.promote()
    assert await append(log, job, after=3) == "1-4"
    server.kill()
    await server.start()
    assert await append(log, job, after=4) == "2-5"
    elsewhere = await open_at(other.url)
    assert await append(elsewhere, job, after=3) == "3-4"
    assert await epochs(archive) == [(1, 1), (2, 5), (3, 4)]
    # Epoch 2 began behind 1-4, and yet that was lost: epoch 3 began before it.
    with pytest.raises(LogForked, match="1-4"):
        await Projector(log, engine).catch_up()
    await Projector(elsewhere, engine).catch_up()
    assert await archived_ids(engine) == ["1-1", "1-2", "1-3", "3-4"]
