"""What a tenant uses a day is counted by the append itself, which refuses what is too much."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import anyio
import pytest

from eventstore import Claim, CommandHandler, DayLimits, EventStore, Handled, QuotaSpent, Spent
from schemas import JobRef, NewEvent, Phase
from schemas.commands import (
    CompletePhase,
    FailJob,
    RequestBuild,
    RequestCancel,
    ScheduleRetry,
    StartJob,
    StartPhase,
    Usage,
)
from schemas.events import JobQueued

pytestmark = pytest.mark.anyio

TENANT = "acme"
EVENING = datetime(2026, 3, 1, 23, 59, 30, tzinfo=UTC)
TODAY, TOMORROW = date(2026, 3, 1), date(2026, 3, 2)


class Clock:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.now = EVENING

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def handler(store: EventStore, clock: Clock) -> CommandHandler:
    return CommandHandler(store, clock=clock)


async def request(
    handler: CommandHandler,
    limits: DayLimits | None = None,
    *,
    tenant: str = TENANT,
    command_id: str | None = None,
) -> Handled:
    command = RequestBuild(tenant, "ann", "shop", "a list")
    ref = JobRef(tenant, str(uuid4()))
    return await handler.handle(ref, command, command_id=command_id, day_limits=limits)


async def claimed(handler: CommandHandler) -> Claim:
    await request(handler)
    store = handler.store
    (claim,) = await store.work.claim(store.partition(TENANT), "w1", free_slots=1, lease_ms=60_000)
    await handler.handle(claim.ref, StartJob("w1", claim.attempt), claim=claim)
    return claim


async def spent(handler: CommandHandler, day: date = TODAY, tenant: str = TENANT) -> Spent:
    found, _ = await handler.store.quotas.spent(tenant, day)
    return found


async def test_of_many_that_ask_at_once_exactly_as_many_are_taken_as_the_day_allows(
    handler: CommandHandler,
) -> None:
    taken, refused = [], []

    async def ask() -> None:
        try:
            taken.append(await request(handler, DayLimits(jobs=7)))
        except QuotaSpent as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(ask)
    assert (len(taken), len(refused)) == (7, 23)
    assert (await spent(handler)).jobs == 7
    assert (await handler.store.log_end(handler.store.partition(TENANT))).seq == 7


async def test_a_refusal_says_of_what_there_was_how_much_and_when_there_is_more(
    handler: CommandHandler,
) -> None:
    await request(handler, DayLimits(jobs=1))
    with pytest.raises(QuotaSpent) as caught:
        await request(handler, DayLimits(jobs=1), command_id="again")
    error = caught.value
    assert (error.what, error.limit, error.used) == ("jobs", 1, 1)
    assert error.resets_at == datetime(2026, 3, 2, tzinfo=UTC)
    assert error.wait_s == 30
    assert "2026-03-02 00:00 UTC" in str(error)
    # Nothing was written down under its command id: with more room it is taken.
    assert (await request(handler, DayLimits(jobs=2), command_id="again")).events


async def test_a_repeated_command_is_counted_once_and_answered_when_the_day_is_used_up(
    handler: CommandHandler,
) -> None:
    first = await request(handler, DayLimits(jobs=1), command_id="once")
    again = await request(handler, DayLimits(jobs=1), command_id="once")
    assert again.repeated
    assert again.job.job == first.job.job
    assert (await spent(handler)).jobs == 1


async def test_an_append_that_is_sent_again_because_its_answer_was_lost_is_counted_once(
    handler: CommandHandler,
) -> None:
    ref, limits = JobRef(TENANT, str(uuid4())), DayLimits(jobs=1)
    payload = JobQueued(tenant=TENANT, user_id="ann", project_id="shop", goal="a list")
    event = NewEvent(id=str(uuid4()), time=EVENING, payload=payload)
    for _ in range(2):
        await handler.store.append(ref, "shop", [event], expected_version=0, day_limits=limits)
    assert (await spent(handler)).jobs == 1


async def test_tokens_and_money_are_counted_wherever_an_event_tells_of_them(
    handler: CommandHandler,
) -> None:
    claim = await claimed(handler)

    async def tell(*commands: StartPhase | ScheduleRetry | CompletePhase | FailJob) -> None:
        for command in commands:
            await handler.handle(claim.ref, command, claim=claim)

    await tell(
        StartPhase(Phase.SCAFFOLD),
        ScheduleRetry("x", 1, "x", "x", 0.0, usage=Usage(1, 2, 0.1)),
        CompletePhase(Phase.SCAFFOLD, 1, usage=Usage(10, 20, 0.2)),
        FailJob("x", "x", "dbg", usage=Usage(100, 200, 0.000000001)),
    )
    assert await spent(handler) == Spent(jobs=1, tokens=333, nano_usd=300_000_001)


@pytest.mark.parametrize(
    ("limits", "what", "used"),
    [(DayLimits(tokens=30), "tokens", 30), (DayLimits(usd=0.25), "usd", 0.25)],
)
async def test_once_tokens_or_money_are_used_up_no_job_is_taken(
    handler: CommandHandler, limits: DayLimits, what: str, used: float
) -> None:
    claim = await claimed(handler)
    await handler.handle(claim.ref, StartPhase(Phase.SCAFFOLD), claim=claim)
    await request(handler, limits)
    done = CompletePhase(Phase.SCAFFOLD, 1, usage=Usage(10, 20, 0.25))
    await handler.handle(claim.ref, done, claim=claim)
    with pytest.raises(QuotaSpent) as caught:
        await request(handler, limits)
    assert (caught.value.what, caught.value.used) == (what, used)


async def test_a_job_adds_what_it_took_from_its_start_to_its_end_to_the_day_of_its_end(
    handler: CommandHandler, clock: Clock
) -> None:
    limits = DayLimits(wall_s=90)
    claim, waits = await claimed(handler), await request(handler)
    clock.now += timedelta(seconds=90)
    await request(handler, limits)
    await handler.handle(claim.ref, FailJob("x", "x", "dbg"), claim=claim)
    await handler.handle(JobRef(TENANT, waits.job.job), RequestCancel(by="ann"))
    assert await spent(handler) == Spent(jobs=2)
    assert await spent(handler, TOMORROW) == Spent(jobs=1, wall_ms=90_000)
    with pytest.raises(QuotaSpent) as caught:
        await request(handler, limits)
    assert (caught.value.what, caught.value.used, caught.value.limit) == ("wall_s", 90.0, 90)


async def test_a_use_beyond_all_measure_is_counted_as_very_much(handler: CommandHandler) -> None:
    claim = await claimed(handler)
    for phase in (Phase.SCAFFOLD, Phase.CODE):
        await handler.handle(claim.ref, StartPhase(phase), claim=claim)
        done = CompletePhase(phase, 1, usage=Usage(10**30, 10**30, 1e300))
        await handler.handle(claim.ref, done, claim=claim)
    assert await spent(handler) == Spent(jobs=1, tokens=2 * 10**15, nano_usd=2 * 10**15)


async def test_at_midnight_the_day_begins_anew(handler: CommandHandler, clock: Clock) -> None:
    await request(handler, DayLimits(jobs=1))
    clock.now = datetime(2026, 3, 2, tzinfo=UTC)
    await request(handler, DayLimits(jobs=1))
    assert (await spent(handler)).jobs == (await spent(handler, TOMORROW)).jobs == 1


async def test_what_one_tenant_uses_is_not_anothers(handler: CommandHandler) -> None:
    await request(handler, DayLimits(jobs=1))
    await request(handler, DayLimits(jobs=1), tenant="globex")
    assert (await spent(handler, tenant="globex")).jobs == 1


async def test_counters_that_were_lost_begin_with_what_is_known_otherwise_and_never_go_down(
    handler: CommandHandler,
) -> None:
    quotas = handler.store.quotas
    await request(handler)
    assert await quotas.spent(TENANT, TODAY) == (Spent(jobs=1), False)
    assert await quotas.count_from(TENANT, TODAY, Spent(5, 0, 7)) == Spent(5, 0, 7)
    assert await quotas.count_from(TENANT, TODAY, Spent(2, 3, 4)) == Spent(5, 3, 7)
    assert await quotas.spent(TENANT, TODAY) == (Spent(5, 3, 7), True)
    await request(handler, DayLimits(jobs=6))
    with pytest.raises(QuotaSpent):
        await request(handler, DayLimits(jobs=6))


async def test_the_counters_of_a_day_are_gone_two_days_later(handler: CommandHandler) -> None:
    await request(handler)
    store = handler.store
    left_s = await store.redis.ttl(store.keys(TENANT).day(TENANT, TODAY))
    assert 86_400 < left_s <= 2 * 86_400


async def used_and_untold(handler: CommandHandler, claim: Claim, untold: Usage) -> Spent:
    """What was used today, when the claimed job says what it has used since its last event."""
    return (await handler.store.quotas.note(claim.ref, claim.attempt, TODAY, untold)).spent


async def test_what_running_jobs_have_used_and_not_told_is_known_until_they_tell(
    handler: CommandHandler,
) -> None:
    one, other = await claimed(handler), await claimed(handler)
    assert await used_and_untold(handler, one, Usage(1, 2, 0.1)) == Spent(2, 3, 100_000_000)
    assert await used_and_untold(handler, other, Usage(10, 20)) == Spent(2, 33, 100_000_000)
    assert await used_and_untold(handler, one, Usage(5, 0, 0.3)) == Spent(2, 35, 300_000_000)
    assert await spent(handler) == Spent(2)
    await handler.handle(one.ref, StartPhase(Phase.SCAFFOLD), claim=one)
    done = CompletePhase(Phase.SCAFFOLD, 1, usage=Usage(5, 1, 0.4))
    await handler.handle(one.ref, done, claim=one)
    assert await used_and_untold(handler, other, Usage(10, 20)) == Spent(2, 36, 400_000_000)


async def test_a_job_that_has_ended_leaves_nothing_untold(
    handler: CommandHandler, clock: Clock
) -> None:
    one, other = await claimed(handler), await claimed(handler)
    await used_and_untold(handler, one, Usage(1, 2))
    clock.now += timedelta(seconds=1)
    await handler.handle(one.ref, FailJob("x", "x", "dbg"), claim=one)
    assert (await used_and_untold(handler, other, Usage())).tokens == 0


async def test_an_attempt_that_was_taken_over_from_leaves_nothing_untold(
    handler: CommandHandler, clock: Clock
) -> None:
    one = await claimed(handler)
    before = replace(one, attempt=one.attempt - 1)
    assert (await used_and_untold(handler, before, Usage(1, 2))).tokens == 0
    assert (await used_and_untold(handler, one, Usage(1, 2))).tokens == 3
    clock.now += timedelta(seconds=1)
    await handler.handle(one.ref, FailJob("x", "x", "dbg"), claim=one)
    assert (await used_and_untold(handler, one, Usage(1, 2))).tokens == 0
