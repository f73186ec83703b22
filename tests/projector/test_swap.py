"""Putting rebuilt tables in the place of live ones that others use."""

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from structlog.testing import capture_logs

from eventstore import EventStore, connect_postgres
from projector import Difference, Projector, rebuild, swapping, verify
from projector.errors import (
    ArchiveShort,
    DiskTooSmall,
    ObjectsInTheWay,
    StillVerifying,
    SwapRefused,
)
from projector.replay import SHADOW
from schemas import JobRef
from service.embedded import Servers
from tests.histories import build, started
from tests.projector.contents import contents, execute, folded, scalar
from tests.projector.processes import another_process, at_the_first_job, blocked_backend, until
from tests.projector.writing import write

pytestmark = pytest.mark.anyio


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tries, one right behind the other."""
    monkeypatch.setattr("projector.swapping.SWAP_TRIES", 3)
    monkeypatch.setattr("projector.swapping._PAUSE_S", 0.01)


async def shadow_is_there(engine: AsyncEngine) -> bool:
    return bool(await scalar(engine, f"SELECT to_regnamespace('{SHADOW}') IS NOT NULL"))


async def test_a_swap_that_readers_hold_up_is_tried_again(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    jobs: list[JobRef],
    servers: Servers,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("projector.swapping._PAUSE_S", 0.0)
    tries = 0
    really_hold = swapping._hold_projectors

    async with (
        another_process(servers, database_url) as other,
        other.engine.connect() as reader,
    ):
        await reader.exec_driver_sql("SELECT count(*) FROM daily_stats")

        async def hold(connection: AsyncConnection) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:  # what comes so late is folded in the try that will fail
                await write(store, build(3))
                await projector.catch_up()
            if tries == 2:
                await write(store, [started(2)], job=jobs[8].job, after=2)
                await projector.catch_up()
            if tries == 3:
                await reader.rollback()
            await really_hold(connection)

        monkeypatch.setattr("projector.swapping._hold_projectors", hold)
        replayed = await rebuild(engine)
    assert tries == 3
    events = await scalar(engine, "SELECT count(*) FROM headrace.events")
    assert replayed.events == events
    assert (await verify(engine))[1] == []
    assert await contents(engine) == await folded(store)


@pytest.mark.usefixtures("impatient")
async def test_a_reader_that_does_not_let_go_makes_the_rebuild_give_up_and_changes_nothing(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    jobs: list[JobRef],
    servers: Servers,
    database_url: str,
) -> None:
    await execute(engine, "UPDATE jobs SET goal = 'the live one'")
    before = await contents(engine)
    async with (
        another_process(servers, database_url) as other,
        other.engine.connect() as reader,
    ):
        await reader.exec_driver_sql("SELECT count(*) FROM phases")
        with pytest.raises(SwapRefused, match="3 tries"):
            await rebuild(engine)
        # Whoever comes behind the refused swap is not held up by it.
        assert await contents(engine) == before
        assert not await shadow_is_there(engine)
        await write(store, build(3))
        assert await projector.catch_up() == len(build())
    await rebuild(engine)
    assert await contents(engine) == await folded(store)


@pytest.mark.usefixtures("impatient")
async def test_a_refused_swap_leaves_no_projector_waiting(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef], servers: Servers, database_url: str
) -> None:
    async with (
        another_process(servers, database_url) as other,
        another_process(servers, database_url) as third,
        other.engine.connect() as reader,
    ):
        await reader.exec_driver_sql("SELECT count(*) FROM jobs")
        with pytest.raises(SwapRefused):
            await rebuild(engine)
        await write(store, build(3))
        assert await third.projector.catch_up() == len(build())


# --- verifications ------------------------------------------------------------------------------


async def test_a_verification_that_lasts_is_waited_for_with_a_bound_that_is_said(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    jobs: list[JobRef],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("projector.swapping._PAUSE_S", 0.01)
    monkeypatch.setattr("projector.swapping.VERIFIED_S", 0.0)
    async with swapping.no_swap(engine):
        with pytest.raises(StillVerifying, match="has not ended within 0 s"):
            await rebuild(engine)
        assert not await shadow_is_there(engine)
    monkeypatch.undo()

    async def waits() -> bool:
        return any(entry["event"] == "swap_waits" for entry in logs)

    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks, swapping.no_swap(engine):
            tasks.start_soon(rebuild, engine)
            await until(waits)
            await write(store, build(3))
            await projector.catch_up()
    assert await contents(engine) == await folded(store)


async def test_a_swap_does_not_come_into_the_middle_of_a_verification(
    engine: AsyncEngine, jobs: list[JobRef], servers: Servers, database_url: str
) -> None:
    """A snapshot that is older than the tables would find them empty."""

    seen: list[bool] = []

    async def look() -> None:
        async with another_process(servers, database_url) as other:
            query = "SELECT pg_try_advisory_xact_lock($1)"
            async with other.engine.begin() as connection:
                found = await connection.exec_driver_sql(query, (swapping._VERIFYING,))
                seen.append(bool(found.scalar_one()))

    assert (await verify(engine, on_progress=at_the_first_job(look)))[1] == []
    assert seen == [False]


async def test_a_verification_that_begins_during_a_swap_sees_the_tables_of_after_it(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    """A snapshot that is older than the tables would find them empty."""
    found: list[Difference] = []

    async def look() -> None:
        found.extend((await verify(engine))[1])

    async with anyio.create_task_group() as tasks, engine.begin() as swap:
        await swap.exec_driver_sql("SELECT pg_advisory_xact_lock($1)", (swapping._VERIFYING,))
        tasks.start_soon(look)
        await blocked_backend(engine)
        for statement in (
            "CREATE TABLE fresh (LIKE daily_stats INCLUDING ALL)",
            "INSERT INTO fresh SELECT * FROM daily_stats",
            "DROP TABLE daily_stats",
            "ALTER TABLE fresh RENAME TO daily_stats",
        ):
            await swap.exec_driver_sql(statement)
    assert found == []


# --- what depends on the tables ------------------------------------------------------------------


@pytest.mark.parametrize("table", ["jobs", "daily_stats", "checkpoints"])
async def test_views_on_the_tables_are_in_the_way_and_named(
    engine: AsyncEngine, jobs: list[JobRef], table: str
) -> None:
    await execute(engine, f"CREATE VIEW ours AS SELECT * FROM {table}")
    before = await contents(engine)
    with pytest.raises(ObjectsInTheWay, match="ours"):
        await rebuild(engine)
    assert await contents(engine) == before
    assert await scalar(engine, "SELECT count(*) >= 0 FROM ours")
    await execute(engine, "DROP VIEW ours")
    await rebuild(engine)


async def test_a_view_that_is_made_meanwhile_is_not_lost(
    engine: AsyncEngine, jobs: list[JobRef], servers: Servers, database_url: str
) -> None:
    async def make_view() -> None:
        async with another_process(servers, database_url) as other:
            await execute(other.engine, "CREATE VIEW ours AS SELECT id FROM jobs")

    with pytest.raises(ObjectsInTheWay, match="ours"):
        await rebuild(engine, on_progress=at_the_first_job(make_view))
    assert await scalar(engine, "SELECT count(*) FROM ours") == len(jobs)


THEIRS = {
    "foreign key": ("CREATE TABLE notes (job text REFERENCES jobs)", "notes"),
    "index": ("CREATE INDEX by_user ON jobs (user_id)", "index by_user"),
    "constraint": (
        "ALTER TABLE jobs ADD CONSTRAINT dear CHECK (cost_usd < 1e6)",
        "constraint dear",
    ),
    "column": ("ALTER TABLE jobs ADD COLUMN note text", "column note of table jobs"),
    "policy": ("CREATE POLICY own ON jobs USING (true)", "policy own"),
    "row security": (
        "ALTER TABLE phases ENABLE ROW LEVEL SECURITY",
        "row security of table phases",
    ),
    "trigger": (
        "CREATE TRIGGER tell BEFORE UPDATE ON jobs FOR EACH ROW "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "trigger tell",
    ),
    "rule": ("CREATE RULE keep AS ON DELETE TO jobs DO INSTEAD NOTHING", "rule keep"),
    "statistics": ("CREATE STATISTICS pair ON tier, status FROM jobs", "pair"),
    "publication": ("CREATE PUBLICATION feed FOR TABLE jobs", "publication feed"),
    "child": ("CREATE TABLE more () INHERITS (daily_stats)", "more"),
}


@pytest.mark.parametrize("kind", THEIRS)
async def test_what_a_swap_would_lose_is_named_before_anything_is_folded(
    engine: AsyncEngine, jobs: list[JobRef], kind: str
) -> None:
    made, name = THEIRS[kind]
    await execute(engine, made)

    def begun(_: int, __: int) -> None:
        raise AssertionError("it has begun to fold")

    with pytest.raises(ObjectsInTheWay, match=name):
        await rebuild(engine, on_progress=begun)


async def test_column_grants_the_grant_option_and_storage_settings_survive(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await execute(
        engine,
        "DROP ROLE IF EXISTS reporter",
        "CREATE ROLE reporter",
        "GRANT SELECT (id, status), UPDATE (goal) ON jobs TO reporter",
        "GRANT SELECT ON phases TO reporter WITH GRANT OPTION",
        "ALTER TABLE jobs SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01)",
    )
    may = (
        "SELECT array_agg(relname || ' ' || coalesce(relacl::text, '') || ' ' || "
        "coalesce(attname || attacl::text, '') || coalesce(reloptions::text, '') "
        "ORDER BY relname, attname) FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid "
        "WHERE relname IN ('jobs', 'phases') AND (relacl IS NOT NULL OR attacl IS NOT NULL)"
    )
    before = await scalar(engine, may)
    assert "reporter=r*/" in str(before)
    await rebuild(engine)
    assert await scalar(engine, may) == before
    await execute(engine, "DROP OWNED BY reporter", "DROP ROLE reporter")


async def test_grants_survive(
    engine: AsyncEngine, jobs: list[JobRef], servers: Servers, database_url: str
) -> None:
    await execute(
        engine,
        'DROP ROLE IF EXISTS "the reader\'s"',
        'CREATE ROLE "the reader\'s" LOGIN',
        'GRANT SELECT, UPDATE ON jobs TO "the reader\'s"',
        "GRANT SELECT ON daily_stats TO PUBLIC",
    )
    may = (
        "SELECT array_agg(grantee || ' ' || table_name || ' ' || privilege_type "
        "ORDER BY grantee, table_name, privilege_type) "
        "FROM information_schema.role_table_grants WHERE table_schema = 'public'"
    )
    before = await scalar(engine, may)
    await rebuild(engine)
    assert await scalar(engine, may) == before
    guest = connect_postgres(database_url.replace("headrace@", "the%20reader's@"))
    assert await scalar(guest, "SELECT count(*) FROM jobs") == len(jobs)
    await guest.dispose()
    await execute(engine, 'DROP OWNED BY "the reader\'s"', 'DROP ROLE "the reader\'s"')


# --- what must be so before it begins ------------------------------------------------------------


async def test_an_archive_that_has_less_than_was_folded_is_not_folded_again(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    end = await scalar(engine, "SELECT seq FROM checkpoints WHERE partition = 1")
    await execute(engine, f"DELETE FROM headrace.events WHERE job = '{jobs[3].job}'")
    before = await contents(engine)
    with pytest.raises(ArchiveShort) as caught:
        await rebuild(engine)
    assert (caught.value.partition, caught.value.folded) == (1, end)
    assert caught.value.archived == end - len(build())
    assert await contents(engine) == before


async def test_a_disk_without_room_for_a_copy_is_told_before_anything_is_done(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    with pytest.raises(DiskTooSmall) as caught:
        await rebuild(engine, free_bytes=1_000)
    assert caught.value.needed_bytes > caught.value.free_bytes == 1_000
    await rebuild(engine, free_bytes=caught.value.needed_bytes)


async def test_who_reads_what_belongs_to_a_table_is_waited_for_too(
    engine: AsyncEngine, jobs: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.swapping.SWAP_TRIES", 2)
    toast = await scalar(
        engine, "SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 'projects'"
    )
    async with engine.connect() as reader:
        await reader.execute(text(f"SELECT count(*) FROM {toast}"))
        with pytest.raises(SwapRefused):
            await rebuild(engine)
    assert (await rebuild(engine)).differing == ()
