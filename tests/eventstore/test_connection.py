"""A server that stumbles: a named error or a bounded number of tries, and the log as it was."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream
from redis.asyncio import Redis
from redis.exceptions import DataError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Archive,
    EventStore,
    RedisUnavailable,
    ServerUnsuitable,
    connect_postgres,
    connect_redis,
    open_log,
)
from eventstore.connection import Pool
from eventstore.reading import stream_end
from schemas import JobRef, NewEvent
from schemas.events import CancelRequested, JobQueued
from tests.eventstore.killable import KillableServer
from tests.logs import PARTITIONS
from tests.projector.processes import until

TENANT, PROJECT = "acme", "shop"
TIMEOUT_S = 0.1
TRIES = 4

Connect = Callable[[str], Redis]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients that soon lose patience, and closes them."""
    made: list[Redis] = []

    def impatient(url: str) -> Redis:
        made.append(connect_redis(url, max_connections=1, command_timeout_s=TIMEOUT_S))
        return made[-1]

    yield impatient
    for client in made:
        await client.aclose()


@pytest.fixture
async def admin(server: KillableServer) -> AsyncIterator[Redis]:
    """Who does something to the server behind the log's back."""
    client = Redis.from_url(server.url)
    yield client
    await client.aclose()


@pytest.fixture
async def log(server: KillableServer, connect: Connect, archive: Archive) -> EventStore:
    """A log on a server of the test's own, over one connection."""
    return await open_log(connect(server.url), archive, partitions=PARTITIONS)


def queued() -> NewEvent:
    payload = JobQueued(tenant=TENANT, user_id="ann", project_id=PROJECT, goal="a list")
    return NewEvent(id=str(uuid4()), time=datetime.now(UTC), payload=payload)


def cancelled() -> NewEvent:
    return NewEvent(id=str(uuid4()), time=datetime.now(UTC), payload=CancelRequested(by="ann"))


async def begin(log: EventStore) -> JobRef:
    """A job with one event."""
    ref = JobRef(TENANT, str(uuid4()))
    await log.append(ref, PROJECT, [queued()], expected_version=0)
    return ref


async def everything(redis: Redis) -> dict[bytes | str, object]:
    """All keys with their serialised values: equal before and after means nothing was written."""
    return {key: await redis.dump(key) for key in sorted(await redis.keys("*"))}


async def versions(log: EventStore, ref: JobRef) -> list[int]:
    """Of the job in its own stream; the log must hold the same events."""
    events = await log.read_job(ref)
    entries = await log.read_log(log.partition(TENANT), None)
    assert [entry.event.id for entry in entries] == [event.id for event in events]
    return [event.version for event in events]


@asynccontextmanager
async def answering(folder: Path, *answers: bytes) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that gives each command the next answer, then the last one for ever: b'' is silence.

    Gives its URL and the commands that came; what a driver says of itself is answered and left out.
    """
    said, left = list[str](), list(answers)

    async def serve(client: ByteStream) -> None:
        lines = BufferedByteReceiveStream(client)

        async def number() -> int:
            return int((await lines.receive_until(b"\r\n", 100))[1:])

        try:
            async with client:
                while True:
                    words = [
                        (await lines.receive_exactly(await number() + 2))[:-2]
                        for _ in range(await number())
                    ]
                    if words[0] == b"CLIENT":
                        await client.send(b"+OK\r\n")
                    else:
                        said.append(words[0].decode())
                        await client.send(left.pop(0) if len(left) > 1 else left[0])
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            return

    async with (
        await anyio.create_unix_listener(folder / "answering.sock") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        yield f"unix://{folder / 'answering.sock'}", said
        # A client that has just closed its end is noticed before, and not while, all is cancelled.
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument",
    ["plain", "ä€😀", "", b"\xff\x00", 0, -7, 2**60, 1.5, b"x" * 100_000, memoryview(b"ab")],
)
def test_commands_are_written_as_the_driver_would(argument: Any) -> None:
    connection = Pool().make_connection()
    drivers = type(connection).pack_command(connection, "CONFIG GET", argument)
    assert b"".join(connection.pack_command("CONFIG GET", argument)) == b"".join(drivers)


def test_what_redis_has_no_form_for_is_refused() -> None:
    with pytest.raises(DataError):
        Pool().make_connection().pack_command("SET", "key", None)  # type: ignore[arg-type]


async def test_an_append_over_a_connection_that_was_cut_goes_over_a_new_one(
    log: EventStore, admin: Redis
) -> None:
    ref = await begin(log)
    await admin.client_kill_filter(_type="normal", skipme=True)
    await log.append(ref, PROJECT, [cancelled()], expected_version=1)
    assert await versions(log, ref) == [1, 2]


async def test_an_append_whose_answer_never_came_is_sent_again_and_is_there_once(
    log: EventStore,
) -> None:
    ref = await begin(log)
    pool = log.redis.connection_pool
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    await connection.send_command("CLIENT", "REPLY", "OFF")
    await pool.release(connection)
    appended = await log.append(ref, PROJECT, [cancelled()], expected_version=1)
    assert (appended.version, appended.position.seq) == (2, 2)
    assert await versions(log, ref) == [1, 2]


async def test_who_finds_all_connections_busy_is_told_so(log: EventStore, admin: Redis) -> None:
    ref = await begin(log)
    before = await everything(admin)
    pool = log.redis.connection_pool
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    with pytest.raises(RedisUnavailable):
        await log.append(ref, PROJECT, [cancelled()], expected_version=1)
    assert await everything(admin) == before
    await pool.release(connection)
    await log.append(ref, PROJECT, [cancelled()], expected_version=1)


# --- time-outs ------------------------------------------------------------------------------------


async def test_a_server_that_never_answers_is_given_up_after_a_few_tries(
    tmp_path: Path, connect: Connect
) -> None:
    async with answering(tmp_path, b"") as (url, said):
        with pytest.raises(RedisUnavailable):
            await stream_end(connect(url), "hr:{0}:log")
    assert said == ["XREVRANGE"] * TRIES


async def test_an_append_that_was_kept_waiting_too_long_may_be_made_again(
    log: EventStore, admin: Redis
) -> None:
    ref = await begin(log)
    before = await everything(admin)
    events = [cancelled()]
    await admin.client_pause(60_000, all=False)
    with pytest.raises(RedisUnavailable):
        await log.append(ref, PROJECT, events, expected_version=1)
    assert await everything(admin) == before
    await admin.client_unpause()
    await log.append(ref, PROJECT, events, expected_version=1)
    assert await versions(log, ref) == [1, 2]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "NOPERM User default has no permissions to run the 'xrevrange' command",
        "NOAUTH Authentication required.",
        "BUSY Redis is busy running a script.",
        "ERR max number of clients reached",
    ],
    ids=lambda refusal: refusal.split()[0],
)
async def test_a_refusal_that_may_pass_is_told_as_unavailable(
    tmp_path: Path, connect: Connect, refusal: str
) -> None:
    async with answering(tmp_path, f"-{refusal}\r\n".encode()) as (url, said):
        with pytest.raises(RedisUnavailable, match=refusal.split(" ", 1)[1][:20]):
            await stream_end(connect(url), "hr:{0}:log")
    assert 1 <= len(said) <= TRIES


async def test_a_server_that_loads_its_data_for_a_moment_is_waited_for(
    tmp_path: Path, connect: Connect
) -> None:
    loading = b"-LOADING Redis is loading the dataset in memory\r\n"
    async with answering(tmp_path, loading, loading, b"*0\r\n") as (url, said):
        assert await stream_end(connect(url), "hr:{0}:log") is None
    assert len(said) == 3


async def test_a_server_without_memory_for_an_event_refuses_it_whole(
    log: EventStore, admin: Redis
) -> None:
    ref = await begin(log)
    before = await everything(admin)
    await admin.config_set("maxmemory", "1")
    with pytest.raises(RedisUnavailable, match="maxmemory"):
        await log.append(ref, PROJECT, [cancelled()], expected_version=1)
    assert await everything(admin) == before
    await admin.config_set("maxmemory", "0")
    await log.append(ref, PROJECT, [cancelled()], expected_version=1)
    assert await versions(log, ref) == [1, 2]


async def test_a_server_that_became_a_replica_takes_no_event_and_is_not_opened(
    log: EventStore, admin: Redis, archive: Archive
) -> None:
    ref = await begin(log)
    before = await everything(admin)
    await admin.replicaof("127.0.0.1", "1")
    with pytest.raises(RedisUnavailable, match="read only"):
        await log.append(ref, PROJECT, [cancelled()], expected_version=1)
    with pytest.raises(ServerUnsuitable, match="replica"):
        await open_log(log.redis, archive, partitions=PARTITIONS)
    assert await everything(admin) == before
    await admin.replicaof("NO", "ONE")
    await log.append(ref, PROJECT, [cancelled()], expected_version=1)
    assert await versions(log, ref) == [1, 2]


async def test_a_server_that_forgot_the_scripts_is_taught_them_again(
    log: EventStore, admin: Redis
) -> None:
    ref = await begin(log)
    await admin.script_flush()
    await log.append(ref, PROJECT, [cancelled()], expected_version=1)
    assert await versions(log, ref) == [1, 2]


# --- away -----------------------------------------------------------------------------------------


async def test_an_append_to_a_server_that_went_away_is_made_once_when_it_is_back(
    log: EventStore, server: KillableServer
) -> None:
    ref = await begin(log)
    events = [cancelled()]
    server.kill()
    with pytest.raises(RedisUnavailable):
        await log.append(ref, PROJECT, events, expected_version=1)
    await server.start()
    await log.append(ref, PROJECT, events, expected_version=1)
    assert await versions(log, ref) == [1, 2]


# --- Postgres ------------------------------------------------------------------------------------


async def test_a_connection_that_postgres_has_ended_is_made_anew_before_it_is_used(
    engine: AsyncEngine, database_url: str
) -> None:
    async with engine.connect() as connection:
        pid = await connection.scalar(text("SELECT pg_backend_pid()"))
        driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    other = connect_postgres(database_url)
    async with other.connect() as connection:
        await connection.execute(text(f"SELECT pg_terminate_backend({pid})"))
    await other.dispose()

    async def hung_up() -> bool:
        return bool(driver.is_closed())

    await until(hung_up)
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT pg_backend_pid()")) != pid
