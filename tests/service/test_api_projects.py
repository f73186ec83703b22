"""Projects, builds, filters and stats over HTTP."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import CommandHandler, Hub
from tests.histories import NOON, build, failed, queued, started
from tests.projector.writing import write
from tests.service.quiet_api import RIVAL, QuietApi, quiet_api

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(handler: CommandHandler, hub: Hub, engine: AsyncEngine) -> AsyncIterator[QuietApi]:
    async with quiet_api(handler, hub, engine) as made:
        yield made


async def test_projects_are_listed_by_name_in_pages(api: QuietApi) -> None:
    for project in ("b", "a", "c"):
        await write(api.store, build(), project=project)
    await write(api.store, build(), project="theirs", tenant=RIVAL)
    await api.fold()
    first = await api.get("/v1/projects", limit=2)
    assert ([row["project_id"] for row in first["projects"]], first["next"]) == (["a", "b"], "b")
    rest = await api.get("/v1/projects", limit=2, behind=first["next"])
    assert ([row["project_id"] for row in rest["projects"]], rest["next"]) == (["c"], None)
    assert (await api.get("/v1/projects/a"))["latest_build"] == 1


async def test_builds_are_listed_newest_first_in_pages(api: QuietApi) -> None:
    for number in range(1, 4):
        await write(api.store, build(number))
    await api.fold()
    first = await api.get("/v1/projects/shop/builds", limit=2)
    assert ([row["number"] for row in first["builds"]], first["next"]) == ([3, 2], 2)
    rest = await api.get("/v1/projects/shop/builds", limit=2, before=first["next"])
    assert ([row["number"] for row in rest["builds"]], rest["next"]) == ([1], None)
    one = await api.get("/v1/projects/shop/builds/2")
    assert one == first["builds"][1]
    assert one["preview_url"] == "https://8080-sb-1.example"


async def test_a_project_without_builds_has_an_empty_list_of_them(api: QuietApi) -> None:
    await write(api.store, [queued(), started(), failed()])
    await api.fold()
    assert await api.get("/v1/projects/shop/builds") == {"builds": [], "next": None}


async def test_what_is_not_there_or_anothers_is_not_found(api: QuietApi) -> None:
    await write(api.store, build(), project="theirs", tenant=RIVAL)
    await write(api.store, build())
    await api.fold()
    for path in (
        "theirs",
        "theirs/builds",
        "theirs/builds/1",
        "%00",
        "a%20b/builds",
        "shop/builds/2",
    ):
        problem = await api.refused(f"/v1/projects/{path}", 404)
        assert "there is no" in problem["detail"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/jobs?tier=gold", "tier"),
        ("/v1/jobs?since=yesterday", "since"),
        ("/v1/jobs?since=2026-03-01T12:00:00", "since"),
        ("/v1/jobs?since=2026-03-02&until=2026-03-01", "until"),
        ("/v1/jobs?goal=%00", "goal"),
        ("/v1/jobs?goal=" + "x" * 201, "goal"),
        ("/v1/jobs?before=nobody", "before"),
        ("/v1/projects?limit=0", "limit"),
        ("/v1/projects?behind=A", "behind"),
        ("/v1/projects/shop/builds?before=x", "before"),
        ("/v1/projects/shop/builds/0", "number"),
        ("/v1/projects/shop/builds/99999999999999999999", "number"),
        ("/v1/stats?since=x", "since"),
        ("/v1/stats?since=2026-03-02&until=2026-03-01", "until"),
        ("/v1/stats?since=2020-01-01&until=2026-03-01", "since"),
        ("/v1/stats?project=A", "project"),
        ("/v1/stats?since=9999-12-01&until=9999-12-31", "since"),
        ("/v1/stats?until=0001-01-01", "until"),
        ("/v1/jobs?since=9999-12-31T23:59:59-01:00", "since"),
        ("/v1/jobs?until=0001-01-01T00:00:00%2B01:00", "until"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_by_field(
    api: QuietApi, path: str, field: str
) -> None:
    problem = await api.refused(path)
    assert problem["errors"][0]["field"] == field
    assert problem["detail"].startswith(f"{field}: ")


async def test_jobs_are_filtered_by_tier_time_and_words(api: QuietApi) -> None:
    paid = await write(api.store, [queued("a poll about lunch").model_copy(update={"tier": "pro"})])
    await write(api.store, [queued("a list")])
    await api.fold()
    for filters in (
        {"tier": "pro"},
        {"goal": "lun poll"},
        {"goal": "POLL", "since": "2026-03-01", "until": "2026-03-02T00:00:00+02:00"},
    ):
        page = await api.get("/v1/jobs", **filters)
        assert [row["job_id"] for row in page["jobs"]] == [paid.job]
    for filters in ({"goal": "' | !"}, {"since": "2026-03-02"}, {"until": "2026-03-01"}):
        assert (await api.get("/v1/jobs", **filters))["jobs"] == []


async def test_stats_tell_what_became_of_the_jobs_of_some_days(api: QuietApi) -> None:
    await write(api.store, build())
    await write(api.store, [queued(), started(), failed()], project="blog")
    await write(api.store, build(), tenant=RIVAL)
    await api.fold()
    day = str(NOON.date())
    found = await api.get("/v1/stats", since=day, until=day)
    assert (found["success_rate"], found["queued"], found["cost_usd"]) == (0.5, 2, 1.0)
    assert [row["project_id"] for row in found["days"]] == ["blog", "shop"]
    shop = await api.get("/v1/stats", since=day, until=day, project="shop")
    assert (shop["success_rate"], len(shop["phases"])) == (1.0, 4)


async def test_stats_are_of_the_last_thirty_days_unless_others_are_named(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine
) -> None:
    handler.clock = lambda: datetime(2026, 3, 30, 23, 59, tzinfo=UTC)
    async with quiet_api(handler, hub, engine) as api:
        await write(api.store, build())
        await api.fold()
        found = await api.get("/v1/stats")
        assert (found["since"], found["until"]) == ("2026-03-01", "2026-03-30")
        assert found["ready"] == 1
