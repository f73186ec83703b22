"""The archive folded by several processes: the same rows, and the same errors."""

import multiprocessing
import os
import signal
from functools import partial
from typing import Any, NoReturn

import anyio
import pytest
from asyncpg import DivisionByZeroError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import EventStore
from projector import rebuild, verify
from projector.errors import ProcessLost
from projector.shares import FoldedShare, Share, fold_share, shares
from projector.writing import driver
from schemas import JobRef
from tests.projector.contents import contents, execute, folded

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def few_jobs_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projector.replay.shares", partial(shares, jobs=2))


async def test_shares_folded_by_two_processes_make_the_rows_of_one(
    store: EventStore,
    engine: AsyncEngine,
    jobs: list[JobRef],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("projector.replay.shares", partial(shares, jobs=2))
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


async def test_a_process_that_is_killed_ends_the_rebuild_which_changes_nothing(
    engine: AsyncEngine, jobs: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*args: Any) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    monkeypatch.setattr("projector.shares.fold_share", killed)
    before = await contents(engine)
    with pytest.raises(ProcessLost, match="--workers 1"):
        await rebuild(engine, workers=2)
    assert await contents(engine) == before
    assert multiprocessing.active_children() == []


async def test_what_fails_in_another_process_is_told_where_it_was_asked_for(
    engine: AsyncEngine, jobs: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(connection: AsyncConnection, *args: Any) -> None:
        await (await driver(connection)).fetch("SELECT 1/0")

    monkeypatch.setattr("projector.shares.fold_share", refused)
    with pytest.raises(DivisionByZeroError):
        await verify(engine, workers=2)
    assert multiprocessing.active_children() == []


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
