"""Reading one's own writes: `after` waits for a position, and says when it waited in vain."""

from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import CommandHandler, Hub
from projector import Standing, backfill, standing
from service.api import reading
from tests.histories import TENANT, build
from tests.projector.contents import execute
from tests.projector.writing import write
from tests.service.instances import PATIENCE_S
from tests.service.quiet_api import QuietApi, quiet_api

pytestmark = pytest.mark.anyio

READ_MODEL = (
    "/v1/jobs",
    "/v1/jobs/{job}",
    "/v1/jobs/{job}/timeline",
    "/v1/projects",
    "/v1/projects/shop",
    "/v1/projects/shop/builds",
    "/v1/projects/shop/builds/1",
    "/v1/stats",
)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each look at how far the read model is."""
    seen: list[None] = []

    async def look(connection: AsyncConnection) -> Standing:
        found = await standing(connection)
        seen.append(None)
        return found

    monkeypatch.setattr(reading, "standing", look)
    return seen


async def submitted(api: QuietApi) -> str:
    """The position that a new job's write answered with."""
    response = await api.client.post("/v1/jobs", json={"goal": "a list"})
    position: str = response.headers["Headrace-Position"]
    assert position == response.json()["position"]
    return position


async def written(api: QuietApi, number: int = 1) -> tuple[str, str]:
    """A job that became a build, and the position behind it."""
    job = await write(api.store, build(number))
    end = await api.store.log_end(api.store.partition(TENANT))
    return job.job, str(end)


async def test_a_read_waits_until_the_write_that_it_names_is_folded(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine, looks: list[None]
) -> None:
    answers: list[httpx.Response] = []

    async def read() -> None:
        answers.append(await api.client.get("/v1/jobs", params={"after": position}))

    async with quiet_api(handler, hub, engine, read_wait_s=PATIENCE_S) as api:
        position = await submitted(api)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            while len(looks) < 2:
                await anyio.lowlevel.checkpoint()
            assert answers == []
            await api.fold()
    (answer,) = answers
    assert len(answer.json()["jobs"]) == 1
    assert answer.headers["Headrace-Position"] == position
    assert "Headrace-Stale" not in answer.headers


async def test_readers_that_wait_hold_no_connection(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine, looks: list[None]
) -> None:
    answers: list[httpx.Response] = []

    async def read() -> None:
        answers.append(await api.client.get("/v1/projects", params={"after": position}))

    async with quiet_api(handler, hub, engine, read_wait_s=PATIENCE_S) as api:
        position = await submitted(api)
        async with anyio.create_task_group() as tasks:
            for _ in range(40):  # more than the pool has
                tasks.start_soon(read)
            while len(looks) < 2:
                await anyio.lowlevel.checkpoint()
            await api.fold()
    assert [answer.status_code for answer in answers] == [200] * 40
    assert all("Headrace-Stale" not in answer.headers for answer in answers)


@pytest.mark.parametrize("path", READ_MODEL)
async def test_an_answer_that_lacks_what_was_named_says_that_it_is_stale(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine, path: str
) -> None:
    async with quiet_api(handler, hub, engine) as api:
        job, position = await written(api)
        path = path.format(job=job)
        late = await api.client.get(path, params={"after": position})
        assert late.headers.get("Headrace-Stale") == "true"
        await api.fold()
        fresh = await api.client.get(path, params={"after": position})
        assert fresh.status_code == 200
        assert fresh.headers["Headrace-Position"] == position
        assert "Headrace-Stale" not in fresh.headers


async def test_an_answer_from_a_table_that_waits_for_a_backfill_says_that_it_is_stale(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine
) -> None:
    async with quiet_api(handler, hub, engine) as api:
        await execute(engine, "DELETE FROM headrace.projections WHERE name = 'projects'")
        _, position = await written(api)
        await api.fold()
        late = await api.client.get("/v1/projects", params={"after": position})
        assert late.headers.get("Headrace-Stale") == "true"
        # The others go on.
        fresh = await api.client.get("/v1/jobs", params={"after": position})
        assert "Headrace-Stale" not in fresh.headers
        await backfill(engine)
        fresh = await api.client.get("/v1/projects", params={"after": position})
        assert "Headrace-Stale" not in fresh.headers
        assert len(fresh.json()["projects"]) == 1


async def test_a_read_that_names_nothing_says_up_to_where_it_is_folded(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine
) -> None:
    async with quiet_api(handler, hub, engine) as api:
        _, position = await written(api)
        nothing = await api.client.get("/v1/jobs")
        assert "Headrace-Position" not in nothing.headers
        await api.fold()
        await written(api, 2)
        answer = await api.client.get("/v1/jobs")
        assert answer.headers["Headrace-Position"] == position
        assert "Headrace-Stale" not in answer.headers


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ("", "not a position"),
        ("12", "not a position"),
        ("2:1-x", "not a position"),
        ("2:1-" + "9" * 40, "not a position"),
        ("3:1-1", "of partition 3, yours is 2"),
    ],
)
async def test_a_position_that_cannot_be_waited_for_is_refused(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine, after: str, says: str
) -> None:
    async with quiet_api(handler, hub, engine) as api:
        for path in READ_MODEL:
            problem: dict[str, Any] = await api.refused(path.format(job="any"), after=after)
            assert [fault["field"] for fault in problem["errors"]] == ["after"]
            assert says in problem["detail"]
