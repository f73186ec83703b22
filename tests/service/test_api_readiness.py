"""/readyz and /metrics: whether what is written can also be read, and if not, why."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import CommandHandler, Hub
from projector import backfill
from tests.histories import TENANT, build
from tests.projector.contents import execute
from tests.projector.spoiling import spoil
from tests.projector.writing import write
from tests.service.quiet_api import QuietApi, quiet_api

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(handler: CommandHandler, hub: Hub, engine: AsyncEngine) -> AsyncIterator[QuietApi]:
    async with quiet_api(handler, hub, engine) as made:
        yield made


async def test_readyz_tells_how_far_the_read_model_is_behind(api: QuietApi) -> None:
    await write(api.store, build())
    own = str(api.store.partition(TENANT))
    before = await api.get("/readyz")
    assert (before["status"], before["lag"][own]) == ("ok", len(build()))
    assert len(before["lag"]) == api.store.partitions
    await api.fold()
    assert set((await api.get("/readyz"))["lag"].values()) == {0}


async def test_what_a_projector_waits_for_makes_it_not_ready_and_is_said(api: QuietApi) -> None:
    api.trouble[3] = "stuck: the event with seq 7 comes next, the log has 9"
    answer = await api.client.get("/readyz", headers={"Authorization": ""})
    assert answer.status_code == 503
    found = answer.json()
    assert (found["status"], found["projector"]) == ("failing", {"3": api.trouble[3]})
    assert (await api.client.get("/healthz")).status_code == 200
    api.trouble.clear()
    assert (await api.get("/readyz"))["projector"] == {}


async def test_parked_jobs_are_counted_and_hold_nobody_up(api: QuietApi) -> None:
    await spoil(api.store)
    await api.fold()
    found = await api.get("/readyz")
    assert (found["status"], found["parked"]) == ("ok", 1)


async def test_tables_that_wait_for_a_backfill_make_it_not_ready_and_are_named(
    api: QuietApi,
) -> None:
    await execute(api.engine, "DELETE FROM headrace.projections WHERE name = 'daily_stats'")
    answer = await api.client.get("/readyz")
    assert (answer.status_code, answer.json()["left_out"]) == (503, ["daily_stats"])
    assert "headrace_tables_left_out 1" in (await api.client.get("/metrics")).text
    await backfill(api.engine)
    assert (await api.get("/readyz"))["left_out"] == []


async def test_a_log_that_is_gone_is_named(api: QuietApi) -> None:
    await api.store.redis.flushall()
    answer = await api.client.get("/readyz")
    assert answer.status_code == 503
    assert "is missing in Redis" in answer.json()["read_model"]


async def test_metrics_tell_the_lag_the_trouble_and_the_parked_jobs(api: QuietApi) -> None:
    await spoil(api.store)
    await api.fold()
    await write(api.store, build(2))
    api.trouble[3] = "stuck"
    own = api.store.partition(TENANT)
    answer = await api.client.get("/metrics", headers={"Authorization": ""})
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if line[0] != "#")
    assert found["headrace_parked_jobs"] == "1"
    assert found[f'headrace_projector_lag_events{{partition="{own}"}}'] == str(len(build()))
    assert found['headrace_projector_held_up{partition="3"}'] == "1"
    assert found['headrace_projector_held_up{partition="0"}'] == "0"
    assert found['headrace_server_up{server="redis"}'] == "1"


async def test_metrics_of_a_log_that_is_gone_leave_out_what_nobody_knows(api: QuietApi) -> None:
    await api.store.redis.flushall()
    answer = await api.client.get("/metrics")
    assert answer.status_code == 200
    assert "headrace_projector_lag_events" not in answer.text
    assert 'headrace_server_up{server="postgres"} 1' in answer.text
