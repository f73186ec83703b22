"""From the log to the tables, against the real servers."""

from typing import Any, ClassVar, cast

import anyio
import pytest
from asyncpg import PostgresError
from hypothesis import HealthCheck, given, settings
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid6 import uuid7

from eventstore import (
    Archive,
    EventStore,
    LogEntry,
    PostgresUnavailable,
    open_log,
)
from projector import Projector, job_by_id, row_of
from projector.archived import states_of
from projector.errors import LogBroken
from schemas import Job, Phase, Position, decode, fold
from schemas.envelope import Decode
from schemas.events import Known, Payload, PhaseCompleted
from service.embedded import Servers
from tests.histories import (
    TENANT,
    all_completed,
    build,
    job_histories,
    new,
    queued,
    ready,
    repaired_build,
    started,
)
from tests.logs import PARTITIONS
from tests.projector.contents import EMPTY, READ_MODEL, contents, execute, folded, scalar
from tests.projector.processes import another_process, blocked_backend
from tests.projector.writing import ONE_PER_PARTITION, write

pytestmark = pytest.mark.anyio

OUR_PARTITION = ONE_PER_PARTITION.index(TENANT)


async def write_mixed(store: EventStore) -> int:
    """Two jobs each of three tenants, in each other's midst; how many events that is.

    Two of the tenants share a partition, and so do their jobs' events.
    """
    tenants = ("acme", "globex", "initech")
    first, second = all_completed(), repaired_build(2)
    ahead = [await write(store, first, tenant=tenant) for tenant in tenants]
    behind = [await write(store, second[:4], tenant=tenant) for tenant in tenants]
    for tenant, job in zip(tenants, ahead, strict=True):
        await write(store, [ready(1)], tenant=tenant, job=job.job, after=len(first))
    for tenant, job in zip(tenants, behind, strict=True):
        await write(store, second[4:], tenant=tenant, job=job.job, after=4)
    return len(tenants) * (len(first) + 1 + len(second))


def cut_batches(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Projectors made from now on fold so many events at a time."""
    monkeypatch.setattr("projector.projector.FIRST_BATCH", size)
    monkeypatch.setattr("projector.projector.MOST", size)


async def fail_writes_to(engine: AsyncEngine, table: str) -> None:
    """From now on every insert into `table` fails, as on a full disk: by no fault of a job."""
    await execute(
        engine,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the disk is full' USING ERRCODE = 'disk_full'; END $$",
        f"CREATE TRIGGER fail BEFORE INSERT ON {table} EXECUTE FUNCTION fail()",
    )


# --- one batch is one transaction ----------------------------------------------------------------


async def test_a_batch_moves_archive_rows_and_checkpoint_together(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, build())
    assert await projector.fold_batch(OUR_PARTITION) == len(build())
    found = await contents(engine)
    assert found == await folded(store)
    assert [row["id"] for row in found["jobs"]] == [job.job]
    assert [event["version"] for event in found["events"]] == list(range(1, len(build()) + 1))
    assert [row["seq"] for row in found["checkpoints"]] == [len(build())]


async def test_an_empty_log_moves_nothing(engine: AsyncEngine, projector: Projector) -> None:
    assert await projector.catch_up() == 0
    assert await contents(engine) == EMPTY


@pytest.mark.parametrize("table", ["headrace.events", "jobs", "daily_stats", "checkpoints"])
async def test_a_batch_that_fails_at_any_table_moves_nothing_and_goes_through_later(
    store: EventStore, engine: AsyncEngine, projector: Projector, table: str
) -> None:
    job = await write(store, all_completed())
    await projector.catch_up()
    before = await contents(engine)
    await write(store, [ready()], job=job.job, after=len(all_completed()))
    await write(store, [queued()])
    await fail_writes_to(engine, table)
    with pytest.raises((PostgresError, PostgresUnavailable), match="the disk is full"):
        await projector.fold_batch(OUR_PARTITION)
    assert await contents(engine) == before
    await execute(engine, f"DROP TRIGGER fail ON {table}")
    assert await projector.catch_up() == 2
    assert await contents(engine) == await folded(store)


async def test_an_entry_that_the_log_has_lost_is_refused_and_nothing_moves(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    await write(store, [queued()])
    await write(store, build())
    # All that was known of the first job: no history has a hole, and yet an event is gone.
    await redis.xdel(store.keys(TENANT).log, "1-1")
    with pytest.raises(LogBroken):
        await projector.fold_batch(OUR_PARTITION)
    assert await contents(engine) == EMPTY


@pytest.mark.parametrize("table", ["headrace.events", "jobs", "checkpoints"])
async def test_postgres_ending_in_the_middle_of_a_batch_is_told_as_such_and_moves_nothing(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    servers: Servers,
    database_url: str,
    table: str,
) -> None:
    await write(store, build())

    async def fold() -> None:
        with pytest.raises(PostgresUnavailable):
            await projector.fold_batch(OUR_PARTITION)

    async with (
        another_process(servers, database_url) as other,
        anyio.create_task_group() as tasks,
        other.engine.begin() as holding,
    ):
        await holding.exec_driver_sql(f"LOCK TABLE {table} IN SHARE MODE")
        tasks.start_soon(fold)
        pid = await blocked_backend(other.engine)
        await execute(other.engine, f"SELECT pg_terminate_backend({pid})")
    assert await contents(engine) == EMPTY
    assert await projector.catch_up() == len(build())


# --- seeing an event twice -----------------------------------------------------------------------


async def test_folding_again_what_was_folded_changes_nothing(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write_mixed(store)
    await projector.catch_up()
    before = await contents(engine)
    assert await projector.catch_up() == 0
    assert await Projector(store, engine).catch_up() == 0
    assert await contents(engine) == before


async def test_a_projector_that_was_overtaken_since_it_read_drops_what_it_has(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis, archive: Archive
) -> None:
    job = await write(store, all_completed())
    slow = await open_log(redis, archive, partitions=PARTITIONS)
    read_log = slow.read_log

    async def overtaken(
        partition: int, after: Position | None, *, count: int = 500, decode: Decode = decode
    ) -> list[LogEntry]:
        entries = await read_log(partition, after, count=count, decode=decode)
        await write(store, [ready()], job=job.job, after=len(all_completed()))
        await projector.catch_up()
        return entries

    slow.read_log = overtaken  # type: ignore[method-assign]
    assert await Projector(slow, engine).fold_batch(OUR_PARTITION) == 0
    assert await contents(engine) == await folded(store)


async def test_three_projectors_at_once_make_the_rows_of_one(
    store: EventStore,
    engine: AsyncEngine,
    servers: Servers,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_batches(monkeypatch, 3)
    events = await write_mixed(store)

    async def fold_until_all_is_there(projector: Projector) -> None:
        while await scalar(engine, "SELECT count(*) FROM headrace.events") < events:
            for partition in range(PARTITIONS):
                await projector.fold_batch(partition)

    async with (
        another_process(servers, database_url) as one,
        another_process(servers, database_url) as two,
        another_process(servers, database_url) as three,
        anyio.create_task_group() as tasks,
    ):
        for process in (one, two, three):
            tasks.start_soon(fold_until_all_is_there, process.projector)
    assert await contents(engine) == await folded(store)


async def test_a_partition_that_another_projector_holds_is_left_to_it(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write(store, [queued()])
    await write(store, [queued()], tenant="initech")
    await execute(engine, f"INSERT INTO headrace.fold_lock VALUES ({OUR_PARTITION})")
    async with engine.begin() as other:
        await other.exec_driver_sql("SELECT * FROM headrace.fold_lock FOR UPDATE")
        assert await projector.fold_batch(OUR_PARTITION) == 0
        assert await projector.fold_batch(ONE_PER_PARTITION.index("initech")) == 1
    assert await projector.fold_batch(OUR_PARTITION) == 1


# --- cuts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7])
async def test_batches_cut_anywhere_make_the_same_rows(
    store: EventStore,
    engine: AsyncEngine,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_batches(monkeypatch, size)
    assert await write_mixed(store) == await Projector(store, engine).catch_up()
    assert await contents(engine) == await folded(store)


@given(history=job_histories())
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_any_history_becomes_the_row_that_its_fold_says(
    store: EventStore, engine: AsyncEngine, projector: Projector, history: list[Known]
) -> None:
    project = f"p-{uuid7()}"  # every example is a project's first build
    job = await write(store, history, project=project)
    await projector.catch_up()
    async with engine.connect() as connection:
        found = await job_by_id(connection, TENANT, job.job)
    expected = fold(await store.read_job(job))
    assert found is not None
    assert expected is not None
    assert found.model_copy(update={"position": None}) == row_of(expected)


async def test_folding_while_events_arrive_makes_the_same_rows(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    history = repaired_build()
    job = await write(store, history[:1])
    for version, payload in enumerate(history[1:], start=1):
        if version % 3:
            await projector.catch_up()
            found = await contents(engine)
            assert [row["version"] for row in found["jobs"]] == [version]
        await write(store, [payload], job=job.job, after=version)
    await projector.catch_up()
    assert await contents(engine) == await folded(store)


# --- what is kept --------------------------------------------------------------------------------


class Sketched(Payload):
    """An event type of a newer writer, with everything that JSON can do to a reader."""

    type: ClassVar[str] = "Sketched"
    strokes: list[dict[str, list[int]]]
    nothing: list[int]
    text: str
    number: float


def sketched() -> Known:
    return cast(
        "Known",
        Sketched(
            strokes=[{}, {"a": []}, {"": [2**100, -(2**63) - 1]}],
            nothing=[],
            text="🙂 \u2028 \\u0041 \x7f ü",
            number=1e22,
        ),
    )


async def test_payloads_stand_in_the_archive_exactly_as_they_were_appended(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    evidence = {"🙂": 2**100, "one": 1, "one point": 1.0, "": "\u2028\t\\", "none": None}
    payloads: list[Known] = [
        queued(goal="ein Gästebuch 🙂 \u2028 \\u0041"),
        started(),
        PhaseCompleted(phase=Phase.SCAFFOLD, duration_ms=1, evidence=evidence),
        sketched(),
    ]
    job = await write(store, payloads)
    await projector.catch_up()
    archived = (await contents(engine))["events"]
    assert [event["data"] for event in archived] == [
        event.data for event in new(payloads, job=job.job)
    ]
    assert b'"nothing":[]' in archived[3]["data"]
    assert str(2**100).encode() in archived[3]["data"]
    assert await store.archive.read_job(TENANT, job.job) == await store.read_job(job)


async def test_the_view_for_people_shows_the_payload_as_json(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write(store, [queued(goal="ein Gästebuch 🙂")])
    await projector.catch_up()
    assert await scalar(engine, "SELECT data->>'goal' FROM headrace.events_json") == (
        "ein Gästebuch 🙂"
    )


async def test_an_event_of_an_unknown_type_moves_version_and_position_of_its_row(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, [queued(), sketched(), started()])
    await projector.catch_up()
    (row,) = (await contents(engine))["jobs"]
    assert (row["id"], row["version"], row["attempt"]) == (job.job, 3, 1)
    assert row["position"] == f"{OUR_PARTITION}:1-3"


async def test_a_ready_job_has_its_four_sandbox_columns_in_the_table(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write(store, build())
    await projector.catch_up()
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql(
            "SELECT sandbox_id, preview_url, build_version, workspace_path FROM public.jobs"
        )
        assert [tuple(row) for row in found] == [
            ("sb-1", "https://8080-sb-1.example", "build_v0_1", "/home/user/project")
        ]


async def test_catching_up_does_not_end_while_another_projector_is_at_the_events(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, build())
    async with engine.begin() as other, anyio.create_task_group() as tasks:
        await other.exec_driver_sql("INSERT INTO headrace.fold_lock VALUES ($1)", (OUR_PARTITION,))
        ended = anyio.Event()

        async def catch_up() -> None:
            await projector.catch_up()
            ended.set()

        tasks.start_soon(catch_up)
        await blocked_backend(engine)
        assert not ended.is_set()
        await other.commit()
    assert await scalar(engine, f"SELECT status FROM jobs WHERE id = '{job.job}'") == "ready"


async def test_a_projector_that_is_caught_up_notices_a_postgres_that_was_set_back(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write(store, build())
    await projector.catch_up()
    await execute(engine, f"TRUNCATE {READ_MODEL}, headrace.events")
    assert await projector.catch_up() == len(build())
    assert await contents(engine) == await folded(store)


async def test_a_bell_that_rang_for_what_was_folded_costs_one_look_at_the_log(
    store: EventStore, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    projector = Projector(store, engine)
    await write(store, build())
    await projector.catch_up()
    looks: list[int] = []
    read_log = store.read_log

    async def look(partition: int, *args: Any, **kwargs: Any) -> list[LogEntry]:
        looks.append(partition)
        return await read_log(partition, *args, **kwargs)

    monkeypatch.setattr(store, "read_log", look)
    await engine.dispose()
    # Without a bell it makes sure that neither the log nor Postgres was set back.
    assert await projector.fold_batch(OUR_PARTITION, rung=True) == 0
    assert looks == [OUR_PARTITION]
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    assert await projector.fold_batch(OUR_PARTITION) == 0
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]


async def test_the_archive_is_asked_only_for_jobs_that_began_before_the_batch(
    store: EventStore, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []

    async def ask(connection: AsyncConnection, wanted: Any, **kwargs: Any) -> dict[str, Job]:
        asked.append(set(wanted))
        return await states_of(connection, wanted, **kwargs)

    monkeypatch.setattr("projector.batches.states_of", ask)
    old = await write(store, all_completed())
    await Projector(store, engine).catch_up()
    assert asked == []
    await write(store, [ready()], job=old.job, after=len(all_completed()))
    await write(store, build(2))
    await Projector(store, engine).catch_up()
    assert asked == [{old.job}]
    assert await contents(engine) == await folded(store)
