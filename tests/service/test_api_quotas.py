"""Tiers, limits and the day's quota over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventstore import CommandHandler, Hub, day_of
from generator import Allowance
from schemas import JobRef, Phase
from schemas.commands import CompletePhase, StartJob, StartPhase
from schemas.commands import Usage as Used
from schemas.events import Limits
from service.quotas import OwnQuota, Quotas
from service.settings import Settings
from service.tiers import Free, Tiers
from tests.histories import TENANT
from tests.projector.contents import execute
from tests.service.quiet_api import QuietApi, quiet_api

pytestmark = pytest.mark.anyio

SMALL = Tiers(
    free=Free(jobs_a_day=3, tokens_a_day=1_000, usd_a_day=1.0, max_tokens=600, max_cost_usd=0.75)
)


@pytest.fixture
async def api(handler: CommandHandler, hub: Hub, engine: AsyncEngine) -> AsyncIterator[QuietApi]:
    async with quiet_api(handler, hub, engine, tiers=SMALL) as made:
        yield made


async def submit(api: QuietApi, key: str | None = None, **request: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await api.client.post("/v1/jobs", json={"goal": "a list", **request}, headers=headers)


async def accepted(api: QuietApi, handler: CommandHandler, **request: Any) -> Limits:
    """The limits of a job that was just taken."""
    response = await submit(api, **request)
    assert response.status_code == 202, response.text
    return (await handler.load(JobRef(TENANT, response.json()["job_id"]))).limits


async def use(handler: CommandHandler, tokens: int, usd: float) -> None:
    """Let the tenant's next job use that."""
    store = handler.store
    (claim,) = await store.work.claim(store.partition(TENANT), "w1", free_slots=1, lease_ms=60_000)
    await handler.handle(claim.ref, StartJob("w1", claim.attempt), claim=claim)
    await handler.handle(claim.ref, StartPhase(Phase.SCAFFOLD), claim=claim)
    done = CompletePhase(Phase.SCAFFOLD, 1, usage=Used(tokens, 0, usd))
    await handler.handle(claim.ref, done, claim=claim)


async def test_a_job_gets_the_limits_of_its_tier_and_may_ask_for_lower_ones(
    api: QuietApi, handler: CommandHandler
) -> None:
    assert await accepted(api, handler) == Limits(
        max_tokens=600, max_cost_usd=0.75, max_wall_s=1800, max_repairs=2
    )
    lower = {"max_tokens": 5, "max_cost_usd": 0.01, "max_wall_s": 60, "max_repairs": 0}
    assert await accepted(api, handler, limits=lower) == Limits.model_validate(lower)


async def test_more_than_its_tier_allows_is_refused_by_name(api: QuietApi) -> None:
    response = await submit(api, limits={"max_cost_usd": 0.76})
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert fault == {
        "field": "limits.max_cost_usd",
        "problem": "0.76 is more than the 0.75 of tier free",
    }
    assert (await submit(api, limits={"max_cost_usd": 0.76}, tier="pro")).status_code == 202
    assert (await submit(api, limits={"max_cost": 1})).status_code == 422


async def test_beyond_the_jobs_of_a_day_the_answer_says_when_there_are_more(
    api: QuietApi, handler: CommandHandler
) -> None:
    answers = [await submit(api) for _ in range(4)]
    assert [one.status_code for one in answers] == [202, 202, 202, 429]
    problem, now = answers[-1].json(), handler.clock()
    midnight = datetime.combine(day_of(now) + timedelta(days=1), datetime.min.time(), UTC)
    assert (problem["quota"], problem["limit"], problem["used"]) == ("jobs", 3, 3)
    assert datetime.fromisoformat(problem["resets_at"]) == midnight
    assert f"{midnight:%Y-%m-%d} 00:00 UTC" in problem["detail"]
    assert abs(int(answers[-1].headers["Retry-After"]) - (midnight - now).total_seconds()) < 60
    assert (await submit(api, tier="pro")).status_code == 202


async def test_a_repeated_request_is_answered_alike_although_less_is_left_by_now(
    api: QuietApi, handler: CommandHandler
) -> None:
    first = await submit(api, key="one")
    await use(handler, 900, 0.9)
    await submit(api)
    await submit(api)
    again = await submit(api, key="one")
    assert again.status_code == 202
    assert again.json()["job_id"] == first.json()["job_id"]
    other = await submit(api, key="one", limits={"max_tokens": 1})
    assert other.status_code == 422


async def test_a_job_may_use_no_more_than_what_the_day_has_left(
    api: QuietApi, handler: CommandHandler
) -> None:
    await accepted(api, handler)
    await use(handler, 900, 0.75)
    limits = await accepted(api, handler)
    assert (limits.max_tokens, limits.max_cost_usd) == (100, 0.25)


async def test_once_the_money_of_the_day_is_used_no_job_is_taken(
    api: QuietApi, handler: CommandHandler
) -> None:
    await submit(api)
    await use(handler, 10, 1.25)
    response = await submit(api)
    assert response.status_code == 429
    problem = response.json()
    assert (problem["quota"], problem["limit"], problem["used"]) == ("usd", 1.0, 1.25)
    assert "1.25 of the 1 US dollars" in problem["detail"]


async def test_usage_says_what_was_used_what_may_be_and_when_the_day_begins_anew(
    api: QuietApi, handler: CommandHandler
) -> None:
    await submit(api)
    await submit(api)
    await use(handler, 300, 0.5)
    found = await api.get("/v1/usage")
    assert found["tier"] == "free"
    assert found["today"]["jobs"] == {"used": 2, "limit": 3}
    assert found["today"]["tokens"] == {"used": 300, "limit": 1_000}
    assert found["today"]["cost_usd"] == {"used": 0.5, "limit": 1.0}
    assert found["today"]["day"] == f"{day_of(handler.clock())}"
    assert found["jobs"] == {"running": 2, "at_once": 1_000, "waiting": 0}
    assert found["a_job"] == {
        "max_tokens": 600, "max_cost_usd": 0.5, "max_wall_s": 1800, "max_repairs": 2
    }  # fmt: skip
    assert (await api.get("/v1/usage", tier="pro"))["today"]["jobs"]["limit"] == 5_000
    theirs = (await api.rival.get("/v1/usage")).json()
    assert theirs["today"]["jobs"]["used"] == 0


async def test_what_was_set_for_a_tenant_alone_goes_before_its_tier(
    api: QuietApi, handler: CommandHandler
) -> None:
    await api.quotas.set_own(TENANT, OwnQuota(tier="free", jobs_a_day=1))
    assert (await handler.store.work.admission(TENANT)).cap == 4
    assert [(await submit(api)).status_code for _ in range(2)] == [202, 429]
    assert (await submit(api, tier="pro")).status_code == 403
    await api.quotas.set_own(TENANT, OwnQuota(tier="pro"))
    assert (await handler.store.work.admission(TENANT)).cap == 16
    job = (await submit(api)).json()["job_id"]
    assert (await handler.load(JobRef(TENANT, job))).tier == "pro"
    await api.quotas.set_own(TENANT, OwnQuota())
    assert (await handler.store.work.admission(TENANT)).cap == 1_000
    assert (await api.get("/v1/usage"))["tier"] == "free"


async def test_a_log_that_lost_its_counters_goes_on_with_what_the_read_model_has(
    api: QuietApi, handler: CommandHandler
) -> None:
    for _ in range(3):
        await submit(api)
    await use(handler, 10, 0.5)
    await api.fold()
    keys = api.store.keys(TENANT)
    await api.store.redis.delete(keys.day(TENANT, day_of(handler.clock())))
    assert (await submit(api)).status_code == 429
    assert (await api.get("/v1/usage"))["today"]["cost_usd"]["used"] == 0.5


async def test_a_read_model_that_is_not_whole_yet_is_not_taken_for_the_day(
    api: QuietApi, handler: CommandHandler, engine: AsyncEngine
) -> None:
    await submit(api)
    await api.fold()
    now = handler.clock()
    await api.store.redis.delete(api.store.keys(TENANT).day(TENANT, day_of(now)))
    version = "UPDATE headrace.projections SET version = version {} 1 WHERE name = 'daily_stats'"
    await execute(engine, "UPDATE daily_stats SET queued = 0", version.format("-"))
    quotas = Quotas(handler.store, engine, SMALL)
    assert (await quotas.standing(TENANT, None, now=now)).spent.jobs == 0
    await execute(engine, "UPDATE daily_stats SET queued = 1", version.format("+"))
    quotas = Quotas(handler.store, engine, SMALL)
    assert (await quotas.standing(TENANT, None, now=now)).spent.jobs == 1


@asynccontextmanager
async def without_postgres() -> AsyncIterator[AsyncEngine]:
    """An engine of a server that is not there."""
    engine = create_async_engine("postgresql+asyncpg://127.0.0.1:1/nothing")
    yield engine
    await engine.dispose()


async def test_a_postgres_that_is_away_keeps_nobody_from_submitting_and_the_count_goes_on(
    api: QuietApi, handler: CommandHandler
) -> None:
    async with without_postgres() as engine:
        quotas = Quotas(handler.store, engine, SMALL)
        now = handler.clock()
        assert (await quotas.standing(TENANT, None, now=now)).spent.jobs == 0
    await submit(api)
    async with without_postgres() as engine:
        quotas = Quotas(handler.store, engine, SMALL)
        assert (await quotas.standing(TENANT, None, now=now)).spent.jobs == 1


def test_the_table_of_tiers_is_changed_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TIERS", '{"free": {"jobs_a_day": 5, "usd_a_day": null}}')
    free = Settings.read().tiers.free
    assert (free.jobs_a_day, free.usd_a_day, free.max_repairs) == (5, None, 2)


async def test_a_running_job_is_told_what_the_jobs_before_it_have_left_of_the_day(
    api: QuietApi, handler: CommandHandler
) -> None:
    await submit(api)
    second = (await submit(api)).json()["job_id"]
    await use(handler, 900, 0.25)
    job = await handler.load(JobRef(TENANT, second))
    assert await api.quotas.left_for(job, Used()) == Allowance(tokens=100, cost_usd=0.75)
    await api.quotas.set_own(TENANT, OwnQuota(tokens_a_day=10, usd_a_day=0.1))
    assert await api.quotas.left_for(job, Used()) == Allowance(tokens=-890, cost_usd=-0.15)


async def test_a_job_whose_tenant_was_put_on_another_tier_is_held_to_that_one(
    api: QuietApi, handler: CommandHandler
) -> None:
    job = await handler.load(JobRef(TENANT, (await submit(api, tier="pro")).json()["job_id"]))
    await api.quotas.set_own(TENANT, OwnQuota(tier="free"))
    assert await api.quotas.left_for(job, Used()) == Allowance(tokens=1_000, cost_usd=1.0)


async def test_a_look_at_the_day_is_one_trip(
    api: QuietApi, handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await handler.load(JobRef(TENANT, (await submit(api)).json()["job_id"]))
    await api.quotas.left_for(job, Used())  # compared with what is archived, once a day
    pool, trips = handler.store.redis.connection_pool, list[object]()
    get_connection: Any = pool.get_connection

    async def counted(*args: Any) -> Any:
        trips.append(args)
        return await get_connection(*args)

    monkeypatch.setattr(pool, "get_connection", counted)
    await api.quotas.left_for(job, Used(1))
    assert len(trips) == 1


async def test_jobs_that_run_at_once_leave_each_other_what_none_has_used(
    api: QuietApi, handler: CommandHandler
) -> None:
    one, other = [
        await handler.load(JobRef(TENANT, (await submit(api)).json()["job_id"])) for _ in range(2)
    ]
    left_for = api.quotas.left_for
    assert await left_for(one, Used(300, 100, 0.5)) == Allowance(tokens=600, cost_usd=0.5)
    assert await left_for(other, Used(500, 0, 0.25)) == Allowance(tokens=100, cost_usd=0.25)
    assert await left_for(one, Used(500, 200, 0.75)) == Allowance(tokens=-200, cost_usd=0.0)
