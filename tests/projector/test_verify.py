"""Proving the read model: what `verify` finds, and what it does not mistake for a difference."""

from decimal import Decimal
from functools import partial

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import Difference, Replayed, verify
from projector.errors import ArchiveShort
from projector.shares import shares
from schemas import JobRef, Position
from service.embedded import Servers
from tests.histories import build
from tests.projector.contents import contents, execute, folded, scalar
from tests.projector.processes import another_process, at_the_first_job
from tests.projector.writing import write

pytestmark = pytest.mark.anyio


async def differences(engine: AsyncEngine) -> list[Difference]:
    _, found = await verify(engine)
    return found


async def test_verify_finds_nothing_where_nothing_is_wrong(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    events = len((await contents(engine))["events"])
    assert await verify(engine) == (Replayed(events=events, jobs=len(jobs)), [])


async def test_verify_finds_nothing_in_an_empty_database(engine: AsyncEngine) -> None:
    assert await verify(engine) == (Replayed(events=0, jobs=0), [])
    assert await verify(engine, jobs=3) == (Replayed(events=0, jobs=0), [])


async def test_verify_finds_nothing_while_events_wait_in_the_log(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await write(store, build(3))
    assert await differences(engine) == []


async def test_verify_leaves_no_trace(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    await execute(engine, "UPDATE jobs SET goal = 'tampered with'")
    before = await contents(engine)
    await verify(engine)
    assert await contents(engine) == before
    assert await scalar(engine, "SELECT to_regnamespace('headrace_rebuild')") is None


# --- what it names -------------------------------------------------------------------------------


async def test_verify_names_every_tampered_column_and_the_event_that_should_have_written_it(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    job = jobs[0].job
    await execute(
        engine,
        "UPDATE jobs SET status = 'failed', attempt = 7, cost_usd = 0.1, preview_url = NULL, "
        f"error_message = 'odd', finished_at = finished_at + interval '1 us' WHERE id = '{job}'",
    )
    found = await differences(engine)
    assert {(difference.table, difference.key) for difference in found} == {("jobs", (job,))}
    assert {d.column: (d.live, d.folded, d.event) for d in found if d.column != "finished_at"} == {
        "status": ("failed", "ready", "JobReady at 0:1-12"),
        "attempt": (7, 1, "JobStarted at 0:1-2"),
        "cost_usd": (Decimal("0.1"), 1, "PhaseCompleted at 0:1-11"),
        "preview_url": (None, "https://8080-sb-1.example", "JobReady at 0:1-12"),
        "error_message": ("odd", None, "JobQueued at 0:1-1"),
    }
    assert "finished_at" in {difference.column for difference in found}


@pytest.mark.parametrize(
    ("statement", "table", "column"),
    [
        ("UPDATE phases SET outcome = 'failed' WHERE phase = 'deps'", "phases", "outcome"),
        ("DELETE FROM phases WHERE phase = 'deps'", "phases", "row"),
        ("UPDATE builds SET manifest = NULL", "builds", "manifest"),
        ("DELETE FROM builds", "builds", "row"),
        ("UPDATE projects SET ready = ready - 1", "projects", "ready"),
        ("UPDATE projects SET cost_usd = cost_usd + 0.000000001", "projects", "cost_usd"),
        ("UPDATE daily_stats SET takeovers = 9", "daily_stats", "takeovers"),
        ("UPDATE daily_stats SET day = day + 1", "daily_stats", "row"),
    ],
)
async def test_verify_looks_at_every_table(
    engine: AsyncEngine, jobs: list[JobRef], statement: str, table: str, column: str
) -> None:
    await execute(engine, statement)
    assert {(d.table, d.column) for d in await differences(engine)} == {(table, column)}


async def test_verify_names_a_missing_row(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    job = jobs[2].job  # it has just started
    await execute(engine, f"DELETE FROM jobs WHERE id = '{job}'")
    assert await differences(engine) == [
        Difference("jobs", (job,), "row", "missing", "there", "JobQueued at 0:1-32")
    ]


async def test_verify_names_a_row_without_events(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    await execute(
        engine,
        "CREATE TEMPORARY TABLE extra ON COMMIT DROP AS SELECT * FROM jobs "
        f"WHERE id = '{jobs[2].job}'",
        "UPDATE extra SET id = 'nobody'",
        "INSERT INTO jobs SELECT * FROM extra",
    )
    assert await differences(engine) == [
        Difference("jobs", ("nobody",), "row", "there", "missing", None)
    ]


async def test_verify_names_every_checkpoint_that_is_not_at_the_archives_end(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    end = {row["partition"]: row["seq"] for row in (await contents(engine))["checkpoints"]}
    await execute(
        engine,
        "UPDATE checkpoints SET seq = seq - 1 WHERE partition = 1",
        "UPDATE checkpoints SET epoch = 2 WHERE partition = 2",
        "DELETE FROM checkpoints WHERE partition = 3",
    )
    assert [(d.table, d.key, d.live, d.folded) for d in await differences(engine)] == [
        ("checkpoints", (1,), Position(1, 1, end[1] - 1), Position(1, 1, end[1])),
        ("checkpoints", (2,), Position(2, 2, end[2]), Position(2, 1, end[2])),
        ("checkpoints", (3,), None, Position(3, 1, end[3])),
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE checkpoints SET seq = seq + 5 WHERE partition = 1",
        "INSERT INTO checkpoints VALUES (4, 1, 1)",
        "DELETE FROM headrace.events WHERE partition = 1 AND seq = 3",
        "DELETE FROM headrace.events WHERE partition = 1",
    ],
)
async def test_verify_refuses_an_archive_that_has_less_than_was_folded(
    engine: AsyncEngine, jobs: list[JobRef], statement: str
) -> None:
    await execute(engine, statement)
    with pytest.raises(ArchiveShort):
        await verify(engine)


async def test_a_difference_is_told_in_one_sentence(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await execute(engine, f"UPDATE jobs SET status = 'failed' WHERE id = '{jobs[0].job}'")
    (found,) = await differences(engine)
    assert str(found) == (
        f"jobs {jobs[0].job}: status is 'failed', not 'ready' (by JobReady at 0:1-12)"
    )


async def test_a_sample_of_all_jobs_finds_what_is_wrong_with_any_and_leaves_sums_alone(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await execute(
        engine,
        f"UPDATE jobs SET goal = 'another' WHERE id = '{jobs[4].job}'",
        f"DELETE FROM builds WHERE job_id = '{jobs[0].job}'",
        "UPDATE projects SET ready = 0",
    )
    replayed, found = await verify(engine, jobs=len(jobs))
    assert replayed.jobs == len(jobs)
    assert [(d.table, d.column) for d in found] == [("jobs", "goal"), ("builds", "row")]


async def test_a_sample_folds_so_many_jobs(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    await execute(engine, "UPDATE jobs SET goal = 'another'")
    replayed, found = await verify(engine, jobs=5)
    assert replayed.jobs == len(found) == 5


# --- beside others -------------------------------------------------------------------------------


async def test_verify_tells_how_far_it_is(
    engine: AsyncEngine, jobs: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.replay.shares", partial(shares, jobs=2))
    told: list[tuple[int, int]] = []
    replayed, _ = await verify(engine, on_progress=lambda seen, total: told.append((seen, total)))
    assert told == sorted(told)
    assert len(told) == len(jobs) / 2
    assert told[-1] == (replayed.events, replayed.events)


async def test_verify_sees_one_moment_however_much_is_folded_meanwhile(
    store: EventStore,
    engine: AsyncEngine,
    jobs: list[JobRef],
    servers: Servers,
    database_url: str,
) -> None:
    await write(store, build(3))

    async def fold_everything() -> None:
        async with another_process(servers, database_url) as other:
            assert await other.projector.catch_up() == len(build())

    # Between the live rows and the archive that they are compared with.
    replayed, found = await verify(engine, on_progress=at_the_first_job(fold_everything))
    assert found == []
    assert replayed.jobs == len(jobs)
    assert (await contents(engine)) == await folded(store)
