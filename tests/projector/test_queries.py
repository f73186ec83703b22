"""What the read model answers."""

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import EventStore
from projector import Projector, job_by_id, list_jobs, row_of
from schemas import Position, Status, fold
from schemas.events import Known
from tests.histories import TENANT, build, failed, queued, started
from tests.projector.writing import write

pytestmark = pytest.mark.anyio

NEIGHBOUR = "globex"
"""A tenant in the same partition."""


async def write_queued(store: EventStore, count: int) -> list[str]:
    """So many jobs, the oldest first."""
    return [(await write(store, [queued()])).job for _ in range(count)]


async def ids(connection: AsyncConnection, tenant: str = TENANT, **wanted: Any) -> list[str]:
    """The job ids of a page."""
    return [row.job_id for row in await list_jobs(connection, tenant, **wanted)]


async def test_jobs_are_listed_newest_first_up_to_the_limit(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    written = await write_queued(store, 5)
    await projector.catch_up()
    async with engine.connect() as connection:
        assert await ids(connection) == written[::-1]
        assert await ids(connection, limit=2) == written[:2:-1]


async def test_pages_neither_skip_nor_repeat_a_job_while_others_are_added(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    written = await write_queued(store, 7)
    await projector.catch_up()
    paged: list[str] = []
    while len(paged) < len(written):
        async with engine.connect() as connection:
            page = await ids(connection, before=paged[-1] if paged else None, limit=3)
        paged += page
        await write_queued(store, 2)
        await write(store, [started()], job=page[0], after=1)
        await projector.catch_up()
    assert paged == written[::-1]


async def test_jobs_are_found_by_project_and_by_status(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    shop_ready = await write(store, build())
    shop_failed = await write(store, [queued(), started(), failed()])
    blog_ready = await write(store, build(), project="blog")
    await projector.catch_up()
    async with engine.connect() as connection:
        assert await ids(connection, project="shop") == [shop_failed.job, shop_ready.job]
        assert await ids(connection, status=Status.READY) == [blog_ready.job, shop_ready.job]
        assert await ids(connection, project="blog", status=Status.FAILED) == []
        assert await ids(connection, project="shop", status=Status.READY) == [shop_ready.job]


async def test_no_tenant_sees_a_job_of_another(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    ours = await write(store, build())
    theirs = await write(store, build(), tenant=NEIGHBOUR)
    await projector.catch_up()
    async with engine.connect() as connection:
        assert await ids(connection) == [ours.job]
        assert await ids(connection, NEIGHBOUR) == [theirs.job]
        assert await ids(connection, "nobody") == []
        assert await ids(connection, before=theirs.job) == [ours.job]
        assert await ids(connection, project="shop", status=Status.READY) == [ours.job]
        assert await job_by_id(connection, TENANT, theirs.job) is None
        assert await job_by_id(connection, NEIGHBOUR, ours.job) is None


async def test_a_job_that_is_not_there_is_none(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await job_by_id(connection, TENANT, "nobody") is None


async def test_a_row_that_is_read_is_the_row_that_was_foretold(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    histories: list[list[Known]] = [[queued()], build(), [queued(), started(), failed()]]
    end = 0
    for history in histories:
        job = await write(store, history)
        await projector.catch_up()
        state = fold(await store.read_job(job))
        assert state is not None
        end += len(history)
        async with engine.connect() as connection:
            found = await job_by_id(connection, TENANT, job.job)
            assert found is not None
            assert found.position == str(Position(store.partition(TENANT), 1, end))
            assert found.model_copy(update={"position": None}) == row_of(state)
            assert (await list_jobs(connection, TENANT, limit=1)) == [found]
