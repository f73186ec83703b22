"""What happened to a job, over HTTP: its events, its timeline, and how it was at any time."""

import base64
import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import CommandHandler, Hub
from schemas import format_time
from tests.histories import NOON, build, repaired_build, started
from tests.projector.contents import execute
from tests.projector.spoiling import spoil
from tests.projector.writing import write
from tests.service.quiet_api import QuietApi, quiet_api

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(handler: CommandHandler, hub: Hub, engine: AsyncEngine) -> AsyncIterator[QuietApi]:
    async with quiet_api(handler, hub, engine) as made:
        yield made


async def test_all_events_of_a_job_are_cloud_events_in_order(api: QuietApi) -> None:
    job = (await write(api.store, build())).job
    found = await api.get(f"/v1/jobs/{job}/events")
    assert found["job_id"] == job
    assert [event["jobversion"] for event in found["events"]] == list(range(1, len(build()) + 1))
    assert [event["type"] for event in found["events"]] == [
        f"headrace.{payload.type}" for payload in build()
    ]
    assert found["events"][0]["data"]["goal"] == "a list"


async def test_an_event_that_cannot_be_read_is_given_as_it_is(api: QuietApi) -> None:
    job = (await spoil(api.store)).job
    await api.fold()
    fourth = (await api.get(f"/v1/jobs/{job}/events"))["events"][3]
    assert fourth["data"]["phase"].startswith("no phase that there is")


async def test_data_that_are_no_json_come_in_base64(api: QuietApi) -> None:
    job = (await write(api.store, build())).job
    await api.fold()
    await execute(
        api.engine,
        f"UPDATE headrace.events SET data = '{{'::bytea WHERE job = '{job}' AND version = 2",
    )
    await api.store.redis.delete(api.store.keys("acme").job(job))
    second = (await api.get(f"/v1/jobs/{job}/events"))["events"][1]
    assert base64.b64decode(second["data_base64"]) == b"{"
    assert "data" not in second


async def test_a_job_is_shown_as_it_was_at_a_version_and_at_a_time(api: QuietApi) -> None:
    job = (await write(api.store, repaired_build())).job
    second = NOON + timedelta(seconds=2)
    for at in ("2", format_time(second), (second + timedelta(milliseconds=999)).isoformat()):
        then = await api.get(f"/v1/jobs/{job}", at=at)
        assert (then["status"], then["version"], then["attempt"]) == ("starting", 2, 1)
        assert then["started_at"] == "2026-03-01T12:00:02Z"
    last = await api.get(f"/v1/jobs/{job}", at=str(len(repaired_build())))
    assert (last["status"], last["build_number"]) == ("ready", 1)
    assert (await api.get(f"/v1/jobs/{job}", at="2040-01-01"))["status"] == "ready"


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ("0", "there is no version 0: the job has 1 to 2"),
        ("3", "there is no version 3: the job has 1 to 2"),
        ("-1", "neither a version (3) nor a time"),
        ("soon", "neither a version (3) nor a time"),
        ("", "neither a version (3) nor a time"),
        ("2026-03-01T12:00:00", "lacks its zone"),
        ("2026-03-01T12:00:00 02:00", "a + is written %2B"),
        ("9999-12-31T23:59:59-01:00", "in UTC before the year 1 or behind the year 9999"),
        ("2020-01-01", "was queued at 2026-03-01T12:00:01.000000Z, after that time"),
    ],
)
async def test_a_moment_that_never_was_is_refused(api: QuietApi, at: str, says: str) -> None:
    job = (await write(api.store, [*build()[:1], started()])).job
    problem = await api.refused(f"/v1/jobs/{job}", at=at)
    assert [fault["field"] for fault in problem["errors"]] == ["at"]
    assert says in problem["detail"]


async def test_of_a_parked_job_the_state_is_known_up_to_what_is_in_the_way(api: QuietApi) -> None:
    job = (await spoil(api.store)).job
    await api.fold()
    now = await api.get(f"/v1/jobs/{job}")
    assert (now["parked"], now["version"]) == (True, 3)
    assert (await api.get(f"/v1/jobs/{job}", at="3"))["version"] == 3
    problem = await api.refused(f"/v1/jobs/{job}", at="5")
    assert "cannot be decoded" in problem["detail"]
    assert "the state is known up to version 3" in problem["detail"]


async def test_a_parked_job_without_a_row_is_told_in_words(api: QuietApi) -> None:
    job = (await spoil(api.store, after=0)).job
    await api.fold()
    problem = await api.refused(f"/v1/jobs/{job}", 500)
    assert problem["title"] == "An event of the job cannot be read"


async def test_a_timeline_tells_every_time_in_a_phase(api: QuietApi) -> None:
    job = (await write(api.store, repaired_build())).job
    await api.fold()
    found = await api.get(f"/v1/jobs/{job}/timeline")
    assert (found["status"], found["queued_at"]) == ("ready", "2026-03-01T12:00:01Z")
    phases = [(one["attempt"], one["round"], one["phase"]) for one in found["phases"]]
    assert phases[:2] == [(1, 1, "scaffold"), (2, 1, "code")]
    assert len(phases) == 7


async def test_the_timeline_of_a_job_that_is_not_folded_yet_is_empty_and_stale(
    api: QuietApi,
) -> None:
    job = (await write(api.store, build())).job
    answer = await api.client.get(f"/v1/jobs/{job}/timeline")
    assert answer.json()["phases"] == []
    assert answer.headers["Headrace-Stale"] == "true"


async def test_the_history_of_anothers_job_looks_like_none_at_all(api: QuietApi) -> None:
    job, nobodys = (await write(api.store, build())).job, "01890000-0000-7000-8000-000000000000"
    await api.fold()
    for path in ("?at=1", "/events", "/timeline"):
        answers = [await api.rival.get(f"/v1/jobs/{one}{path}") for one in (job, nobodys)]
        assert [answer.status_code for answer in answers] == [404, 404]
        theirs, none = [json.dumps(answer.json()) for answer in answers]
        assert theirs.replace(job, "?") == none.replace(nobodys, "?")


@pytest.mark.parametrize("job", ["no-such-job", "%00", "a%20b", "*"])
async def test_what_is_no_job_has_no_history(api: QuietApi, job: str) -> None:
    for path in ("?at=1", "/events", "/timeline"):
        await api.refused(f"/v1/jobs/{job}{path}", 404)
