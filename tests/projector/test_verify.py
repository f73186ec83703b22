"""Proving the read model: what `verify` finds, and what it does not mistake for a difference."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from anyio import to_thread
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import Difference, Replayed, rebuild, verify
from schemas import JobRef, Position
from service.embedded import Servers
from tests.histories import build
from tests.projector.contents import contents, execute, folded, scalar
from tests.projector.processes import another_process, at_the_first_job, beside, blocked_backend
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


async def test_verify_finds_nothing_while_events_wait_in_the_log(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await write(store, build(3))
    assert await differences(engine) == []


async def test_verify_names_every_tampered_column(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    job = jobs[0].job
    await execute(
        engine,
        "UPDATE jobs SET status = 'failed', attempt = 7, cost_usd = 0.1, preview_url = NULL, "
        f"error_message = 'odd', finished_at = finished_at + interval '1 us' WHERE id = '{job}'",
    )
    found = await differences(engine)
    assert {difference.job for difference in found} == {job}
    assert {d.column: (d.live, d.folded) for d in found if d.column != "finished_at"} == {
        "status": ("failed", "ready"),
        "attempt": (7, 1),
        "cost_usd": (0.1, 1.0),
        "preview_url": (None, "https://8080-sb-1.example"),
        "error_message": ("odd", None),
    }
    assert "finished_at" in {difference.column for difference in found}


async def test_verify_names_a_missing_row(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    position = await scalar(engine, f"SELECT position FROM jobs WHERE id = '{jobs[3].job}'")
    await execute(engine, f"DELETE FROM jobs WHERE id = '{jobs[3].job}'")
    assert await differences(engine) == [
        Difference(jobs[3].job, "row", "missing", "there", position)
    ]


async def test_verify_names_a_row_without_events(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    await execute(
        engine,
        "CREATE TEMPORARY TABLE extra ON COMMIT DROP AS SELECT * FROM jobs "
        f"WHERE id = '{jobs[2].job}'",
        "UPDATE extra SET id = 'nobody'",
        "INSERT INTO jobs SELECT * FROM extra",
    )
    assert await differences(engine) == [Difference("nobody", "row", "there", "no such job", None)]


async def test_verify_names_every_checkpoint_that_is_not_at_the_archives_end(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    end = {row["partition"]: row["seq"] for row in (await contents(engine))["checkpoints"]}
    await execute(
        engine,
        "UPDATE checkpoints SET seq = seq + 5 WHERE partition = 0",
        "UPDATE checkpoints SET seq = seq - 1 WHERE partition = 1",
        "UPDATE checkpoints SET epoch = 2 WHERE partition = 2",
        "DELETE FROM checkpoints WHERE partition = 3",
        "INSERT INTO checkpoints VALUES (4, 1, 1)",
    )
    assert [(d.column, d.live, d.folded) for d in await differences(engine)] == [
        ("checkpoint of partition 0", Position(0, 1, end[0] + 5), Position(0, 1, end[0])),
        ("checkpoint of partition 1", Position(1, 1, end[1] - 1), Position(1, 1, end[1])),
        ("checkpoint of partition 2", Position(2, 2, end[2]), Position(2, 1, end[2])),
        ("checkpoint of partition 3", None, Position(3, 1, end[3])),
        ("checkpoint of partition 4", Position(4, 1, 1), None),
    ]


async def test_a_difference_is_told_in_one_sentence(
    engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    await execute(engine, f"UPDATE jobs SET status = 'failed' WHERE id = '{jobs[0].job}'")
    (found,) = await differences(engine)
    assert str(found) == (
        f"job {jobs[0].job}: status is 'failed', its events say 'ready' "
        f"(last event at {found.position})"
    )


async def test_verify_tells_how_far_it_is(engine: AsyncEngine, jobs: list[JobRef]) -> None:
    told: list[tuple[int, int]] = []
    replayed, _ = await verify(engine, on_progress=lambda seen, total: told.append((seen, total)))
    assert told == sorted(told)
    assert len(told) == len(jobs)
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
    unused = [fold_everything]

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def fold_meanwhile(_: object, __: object, statement: str, *rest: object) -> None:
        if "ORDER BY headrace.events.job" in statement:
            beside(unused.pop())

    _, found = await verify(engine)
    assert not unused
    assert found == []
    assert (await contents(engine)) == await folded(store)


async def test_a_rebuild_that_begins_during_a_verify_waits_until_it_has_ended(
    engine: AsyncEngine, jobs: list[JobRef], servers: Servers, database_url: str
) -> None:
    async def remake() -> Replayed:
        async with another_process(servers, database_url) as other:
            return await rebuild(other.engine)

    with ThreadPoolExecutor(1) as another:
        begun: list[Future[Replayed]] = []

        async def begin_and_see_it_wait() -> None:
            begun.append(another.submit(asyncio.run, remake()))
            async with another_process(servers, database_url) as other:
                await blocked_backend(other.engine)

        replayed, found = await verify(engine, on_progress=at_the_first_job(begin_and_see_it_wait))
        assert found == []
        assert await to_thread.run_sync(begun[0].result) == replayed
