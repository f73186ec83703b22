"""The archive folded by several processes: the same rows, and the same errors."""

import asyncio
import multiprocessing
import os
import signal
from functools import partial
from typing import Any, NoReturn

import anyio
import pytest
from asyncpg import DivisionByZeroError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import EventStore, connect_postgres
from projector import rebuild, verify
from projector.errors import HistoryBroken, ProcessLost, ReplayRefused, ReplayRunning
from projector.folding import by_job, parked_at
from projector.shares import FoldedShare, Share, fold_share, shares
from projector.writing import driver, set_aside
from schemas import JobRef
from tests.projector.contents import contents, execute, folded, whole_log
from tests.projector.killable import LOOK_S
from tests.projector.processes import PATIENCE_S

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def few_jobs_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projector.replay.shares", partial(shares, jobs=2))


async def test_shares_folded_by_two_processes_make_the_rows_of_one(
    store: EventStore,
    engine: AsyncEngine,
    jobs: list[JobRef],
) -> None:
    before = await contents(engine)
    replayed, differences = await verify(engine, workers=2)
    assert (replayed.jobs, differences) == (len(jobs), [])
    await execute(engine, "UPDATE projects SET cost_usd = 0", "UPDATE jobs SET goal = 'another'")
    replayed, differences = await verify(engine, workers=2)
    assert {(found.table, found.column) for found in differences} == {
        ("projects", "cost_usd"),
        ("jobs", "goal"),
    }
    replayed = await rebuild(engine, workers=2)
    assert replayed.differing == ("jobs", "projects")
    assert await contents(engine) == before == await folded(store)


async def test_a_job_that_stands_aside_is_left_out_by_every_process(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef]
) -> None:
    histories = by_job(await whole_log(store))
    third = {ref.job: histories[ref.job][2] for ref in jobs[:2]}
    async with engine.begin() as connection:
        odd = [parked_at(*entry, ValueError("odd")) for entry in third.values()]
        await set_aside(connection, odd)
    replayed = await rebuild(engine, workers=2)
    assert replayed.parked == 2
    aside = {job: entry.position for job, entry in third.items()}
    assert await contents(engine) | {"parked": []} == await folded(store, aside)


async def test_one_process_that_is_killed_ends_the_rebuild_which_changes_nothing(
    engine: AsyncEngine, jobs: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed_at_the_end(
        connection: AsyncConnection, share: Share, *args: Any
    ) -> FoldedShare:
        if share.last is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return await fold_share(connection, share, *args)

    monkeypatch.setattr("projector.shares.fold_share", killed_at_the_end)
    before = await contents(engine)
    with anyio.fail_after(PATIENCE_S), pytest.raises(ProcessLost, match="--workers 1"):
        await rebuild(engine, workers=2)
    assert await contents(engine) == before
    assert multiprocessing.active_children() == []


async def test_processes_leave_to_the_one_that_waits_what_the_terminal_says(
    store: EventStore, engine: AsyncEngine, jobs: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def signalled(*args: Any) -> FoldedShare:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        return await fold_share(*args)

    monkeypatch.setattr("projector.shares.fold_share", signalled)
    assert (await rebuild(engine, workers=2)).jobs == len(jobs)
    assert await contents(engine) == await folded(store)


async def test_processes_end_with_the_one_that_is_killed_and_are_in_nobodys_way(
    engine: AsyncEngine,
    database_url: str,
    jobs: list[JobRef],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)

    async def hanging(*args: Any) -> None:
        theirs.send(os.getpid())
        await anyio.sleep_forever()

    def hangs() -> None:
        asyncio.run(rebuild(connect_postgres(database_url), workers=2))

    with monkeypatch.context() as patched:
        patched.setattr("projector.shares.fold_share", hanging)
        rebuilding = multiprocessing.get_context("fork").Process(target=hangs)
        rebuilding.start()
    with anyio.fail_after(PATIENCE_S):
        await anyio.wait_readable(ours)
        ends = [os.pidfd_open(ours.recv()) for _ in range(2)]
        rebuilding.kill()
        rebuilding.join()
        for end in ends:
            await anyio.wait_readable(end)
            os.close(end)
        assert await rebuilt_when_it_may(engine) == len(jobs)


async def rebuilt_when_it_may(engine: AsyncEngine) -> int:
    """How many jobs. Postgres may not have met yet that whoever rebuilt is gone."""
    while True:
        try:
            return (await rebuild(engine)).jobs
        except ReplayRunning:
            await anyio.sleep(LOOK_S)


async def test_what_fails_in_another_process_is_told_where_it_was_asked_for(
    engine: AsyncEngine, jobs: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(connection: AsyncConnection, *args: Any) -> None:
        await (await driver(connection)).fetch("SELECT 1/0")

    monkeypatch.setattr("projector.shares.fold_share", refused)
    with pytest.raises(DivisionByZeroError):
        await verify(engine, workers=2)
    assert multiprocessing.active_children() == []


async def test_an_error_that_cannot_be_sent_is_told_by_what_it_says(
    engine: AsyncEngine, jobs: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any) -> NoReturn:
        raise HistoryBroken("job-1", expected=2, found=4)

    monkeypatch.setattr("projector.shares.fold_share", broken)
    with pytest.raises(ReplayRefused, match=r"^HistoryBroken: .*job-1"):
        await verify(engine, workers=2)


async def test_another_process_may_take_its_time(
    engine: AsyncEngine, jobs: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def told(connection: AsyncConnection, *args: Any) -> NoReturn:
        raise KeyError(
            await (await driver(connection)).fetchval(f"SELECT current_setting({limit})")
        )

    limit = "'idle_in_transaction_session_timeout'"
    database = f'DATABASE "{engine.url.database}"'
    monkeypatch.setattr("projector.shares.fold_share", told)
    await execute(engine, f"ALTER {database} SET idle_in_transaction_session_timeout = '7s'")
    try:
        with pytest.raises(KeyError, match="'0'"):
            await verify(engine, workers=2)
    finally:
        await execute(engine, f"ALTER {database} RESET idle_in_transaction_session_timeout")


async def test_processes_end_with_the_replay_that_is_given_up(
    engine: AsyncEngine, jobs: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[Share] = []

    async def only_the_first(connection: AsyncConnection, share: Share, *args: Any) -> FoldedShare:
        first.append(share)
        if len(first) > 1:
            await anyio.sleep_forever()
        return await fold_share(connection, share, *args)

    def given_up(events: int, of: int) -> NoReturn:
        assert len(multiprocessing.active_children()) == 2
        raise KeyError(events, of)

    monkeypatch.setattr("projector.shares.fold_share", only_the_first)
    with pytest.raises(KeyError):
        await verify(engine, workers=2, on_progress=given_up)
    assert multiprocessing.active_children() == []
