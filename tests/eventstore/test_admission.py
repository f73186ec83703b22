"""Admission: how many jobs of a tenant run, who waits behind its cap, and who is let in next."""

from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from eventstore import (
    Admission,
    Archive,
    Claim,
    CommandHandler,
    EventStore,
    Housekeeper,
    TooManyWaiting,
    open_log,
)
from eventstore import store as store_module
from eventstore.reading import stream_range
from schemas import JobRef, Phase
from schemas.commands import (
    CompletePhase,
    FailJob,
    FinishBuild,
    RequestBuild,
    RequestCancel,
    StartJob,
    StartPhase,
)
from schemas.events import TERMINAL_TYPES
from tests.databases import NewDatabase
from tests.logs import PARTITIONS, new_log

pytestmark = pytest.mark.both_servers

TENANT = "acme"
NEIGHBOUR = "globex"
"""In the same partition of four."""
LEASE_MS = 60_000
CAP = 2


@pytest.fixture
async def store(redis: Redis, archive: Archive, new_database: NewDatabase) -> EventStore:
    """A log whose tenants run two jobs at a time."""
    return await new_log(redis, archive, new_database.execute, tenant_cap=CAP)


async def queue(
    handler: CommandHandler, count: int = 1, *, tenant: str = TENANT, tier: str = "free"
) -> list[JobRef]:
    refs = [JobRef(tenant, str(uuid4())) for _ in range(count)]
    for ref in refs:
        command = RequestBuild(tenant, "ann", "shop", "a list", tier=tier)  # type: ignore[arg-type]
        await handler.handle(ref, command)
    return refs


async def claim(store: EventStore, worker: str = "w1", *, slots: int = 99) -> list[Claim]:
    return await store.work.claim(
        store.partition(TENANT), worker, free_slots=slots, lease_ms=LEASE_MS
    )


async def cancel(handler: CommandHandler, ref: JobRef) -> None:
    await handler.handle(ref, RequestCancel(by="ann"))


async def fail(handler: CommandHandler, ref: JobRef) -> None:
    await handler.handle(ref, FailJob("runner", "try another goal", "dbg-1"))


async def walk_to_ready(handler: CommandHandler, claim: Claim) -> None:
    await handler.handle(claim.ref, StartJob(claim.worker, claim.attempt), claim=claim)
    for phase in Phase:
        await handler.handle(claim.ref, StartPhase(phase), claim=claim)
        await handler.handle(claim.ref, CompletePhase(phase, duration_ms=1), claim=claim)
    last = await handler.store.last_build_number(claim.ref.tenant, claim.project)
    await handler.handle(claim.ref, FinishBuild(build_number=last + 1), claim=claim)


async def may_run(store: EventStore, tenant: str = TENANT) -> list[str]:
    """The tenant's jobs on the work streams, high ones first, each class in order."""
    keys, found = store.keys(tenant), []
    for name in ("high", "normal"):
        for _, fields in await stream_range(store.redis, keys.work(name)):
            if fields[b"tenant"].decode() == tenant:
                found.append(fields[b"job"].decode())
    return found


def names(refs: list[JobRef]) -> list[str]:
    return [ref.job for ref in refs]


# --- the cap -------------------------------------------------------------------------------------


async def test_a_tenant_has_no_more_jobs_that_may_run_than_its_cap(handler: CommandHandler) -> None:
    jobs = await queue(handler, 5)
    assert await may_run(handler.store) == names(jobs[:CAP])
    assert await handler.store.work.waiting(TENANT) == 3


async def test_each_tenant_has_its_own_cap(handler: CommandHandler) -> None:
    await queue(handler, 5)
    (theirs,) = await queue(handler, tenant=NEIGHBOUR)
    assert await may_run(handler.store, NEIGHBOUR) == [theirs.job]


@pytest.mark.parametrize("end", ["ready", "failed", "cancelled"])
async def test_with_the_last_event_of_a_job_the_next_one_is_let_in(
    handler: CommandHandler, end: str
) -> None:
    jobs = await queue(handler, 3)
    first, _ = await claim(handler.store)
    if end == "ready":
        await walk_to_ready(handler, first)
    else:
        await (fail if end == "failed" else cancel)(handler, first.ref)
    assert await may_run(handler.store) == names(jobs[1:])
    assert await handler.store.work.waiting(TENANT) == 0


async def test_an_event_in_the_middle_lets_nobody_in(handler: CommandHandler) -> None:
    jobs = await queue(handler, 3)
    first, _ = await claim(handler.store)
    await handler.handle(first.ref, StartJob("w1", 1), claim=first)
    await cancel(handler, first.ref)  # only requested: its worker has yet to stop
    assert await may_run(handler.store) == names(jobs[:CAP])


async def test_a_queued_job_that_is_cancelled_makes_room(handler: CommandHandler) -> None:
    jobs = await queue(handler, 3)
    await cancel(handler, jobs[1])
    assert await may_run(handler.store) == [jobs[0].job, jobs[2].job]


async def test_a_waiting_job_that_is_cancelled_is_never_let_in(handler: CommandHandler) -> None:
    jobs = await queue(handler, 4)
    await cancel(handler, jobs[2])
    assert await handler.store.work.waiting(TENANT) == 1
    await fail(handler, jobs[0])
    assert await may_run(handler.store) == [jobs[1].job, jobs[3].job]


async def test_of_those_that_wait_high_ones_go_before_older_normal_ones(
    handler: CommandHandler,
) -> None:
    running = await queue(handler, CAP)
    normal = await queue(handler, 2)
    high = await queue(handler, 2, tier="pro")
    let_in: list[str] = []
    for ref in [*running, *high, normal[0]]:
        await cancel(handler, ref)
        let_in.append((set(await may_run(handler.store)) - set(names(running)) - set(let_in)).pop())
        if len(let_in) == 4:
            break
    assert let_in == names([*high, *normal])


async def test_a_claim_prefers_high_work_of_any_tenant(handler: CommandHandler) -> None:
    normal = await queue(handler, CAP)
    (high,) = await queue(handler, tenant=NEIGHBOUR, tier="pro")
    taken = await claim(handler.store, slots=2)
    assert [one.ref for one in taken] == [high, normal[0]]


# --- how many may wait ---------------------------------------------------------------------------


async def test_a_tenant_with_too_many_waiting_is_refused_until_one_of_them_is_let_in(
    handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_WAITING", 2)
    jobs = await queue(handler, CAP + 2)
    with pytest.raises(TooManyWaiting) as caught:
        await queue(handler)
    assert (caught.value.tenant, caught.value.limit) == (TENANT, 2)
    await queue(handler, tenant=NEIGHBOUR)  # it is nobody else's limit
    await fail(handler, jobs[0])
    (later,) = await queue(handler)
    assert await handler.store.work.waiting(TENANT) == 2
    assert (await handler.load(later)).version == 1


async def test_who_may_run_at_once_is_not_refused_for_those_that_wait(
    handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_WAITING", 0)
    jobs = await queue(handler, CAP)
    assert await may_run(handler.store) == names(jobs)
    with pytest.raises(TooManyWaiting):
        await queue(handler)


# --- caps that change ----------------------------------------------------------------------------


async def test_a_higher_cap_lets_the_oldest_in_at_once(handler: CommandHandler) -> None:
    jobs = await queue(handler, 6)
    answer = await handler.store.work.set_cap(TENANT, 5)
    assert answer == Admission(running=5, cap=5, admitted=3)
    assert await may_run(handler.store) == names(jobs[:5])


async def test_a_lower_cap_ends_nothing_and_lets_nobody_in_until_it_is_met(
    handler: CommandHandler,
) -> None:
    jobs = await queue(handler, 4)
    assert await handler.store.work.set_cap(TENANT, 1) == Admission(running=2, cap=1, admitted=0)
    await fail(handler, jobs[0])
    assert await may_run(handler.store) == [jobs[1].job]
    await fail(handler, jobs[1])
    assert await may_run(handler.store) == [jobs[2].job]


async def test_a_cap_of_nothing_holds_a_tenant_back_until_it_is_lifted(
    handler: CommandHandler,
) -> None:
    await handler.store.work.set_cap(TENANT, 0)
    jobs = await queue(handler, 2)
    assert await may_run(handler.store) == []
    answer = await handler.store.work.set_cap(TENANT, None)
    assert answer == Admission(running=2, cap=CAP, admitted=2)
    assert await may_run(handler.store) == names(jobs)


async def test_a_default_cap_that_changed_between_two_starts_is_applied_by_keeping_house(
    handler: CommandHandler, redis: Redis, archive: Archive
) -> None:
    jobs = await queue(handler, 5)
    await handler.store.work.set_cap(NEIGHBOUR, 1)
    theirs = await queue(handler, 3, tenant=NEIGHBOUR)
    later = await open_log(redis, archive, partitions=PARTITIONS, tenant_cap=4)
    assert await may_run(later) == names(jobs[:CAP])
    housekeeper = Housekeeper(later, keep_s=3600, keep_events=1_000, lease_s=60)
    await housekeeper.keep(later.partition(TENANT))
    assert await may_run(later) == names(jobs[:4])
    # Who has a cap of its own does not notice.
    assert await may_run(later, NEIGHBOUR) == names(theirs[:1])


async def test_a_job_handed_back_still_counts_and_lets_nobody_in(handler: CommandHandler) -> None:
    jobs = await queue(handler, 3)
    first, _ = await claim(handler.store)
    await handler.store.work.release(first)
    assert set(await may_run(handler.store)) == set(names(jobs[:CAP]))
    assert await handler.store.work.admit(TENANT) == Admission(running=2, cap=CAP, admitted=0)


async def test_idle_workers_are_told_when_a_job_may_run_and_only_then(
    handler: CommandHandler,
) -> None:
    first, second = await queue(handler, CAP)
    assert await rung(handler.store) == "queued"
    await queue(handler, 2)
    assert await rung(handler.store) == "request"
    await fail(handler, first)
    assert await rung(handler.store) == "queued"
    await handler.store.work.set_cap(TENANT, 1)
    await fail(handler, second)
    assert await rung(handler.store) == "request"
    await handler.store.work.set_cap(TENANT, None)
    assert await rung(handler.store) == "queued"


async def rung(store: EventStore) -> str:
    """What the bell of the tenant's partition said last."""
    *_, (_, fields) = await stream_range(store.redis, store.keys(TENANT).bell)
    return fields[b"what"].decode()


async def test_nothing_is_kept_of_a_tenant_whose_jobs_have_all_ended(
    handler: CommandHandler, redis: Redis
) -> None:
    store = handler.store
    for ref in await queue(handler, 4):
        await cancel(handler, ref)
    keys = store.keys(TENANT)
    kept = (keys.tenants, keys.runs, keys.waiting(TENANT))
    assert [await redis.exists(key) for key in kept] == [0, 0, 0]
    assert await store.work.tenants(keys.partition) == {}


# --- counts --------------------------------------------------------------------------------------

acts = st.lists(
    st.tuples(
        st.sampled_from(["queue", "queue", "queue", "end", "end", "claim", "release", "cap"]),
        st.integers(0, 5),
    ),
    max_size=30,
)


@settings(
    max_examples=15,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(acts=acts)
async def test_the_counts_are_what_the_log_says_whatever_happened(
    acts: list[tuple[str, int]], handler: CommandHandler
) -> None:
    tenant, claims = f"t-{uuid4()}", list[Claim]()
    store, jobs, cap = handler.store, list[JobRef](), CAP
    for act, number in acts:
        if act == "queue":
            jobs += await queue(handler, tenant=tenant, tier="pro" if number == 0 else "free")
        elif act == "cap":
            cap = number
            await store.work.set_cap(tenant, cap)
        elif act == "claim":
            claims += await store.work.claim(
                store.partition(tenant), "w1", free_slots=number, lease_ms=LEASE_MS
            )
        elif act == "release" and claims:
            await store.work.release(claims[number % len(claims)])
        elif act == "end" and jobs:
            await cancel(handler, jobs.pop(number % len(jobs)))
        ended = {
            entry.event.job
            for entry in await store.read_log(store.partition(tenant), None, count=100_000)
            if entry.event.type in TERMINAL_TYPES
        }
        living = [ref.job for ref in jobs if ref.job not in ended]
        answer = await store.work.admit(tenant)
        running = await may_run(store, tenant)
        assert set(running) <= set(living)
        assert answer == Admission(running=len(running), cap=cap, admitted=0)
        assert await store.work.waiting(tenant) == len(living) - len(running)
        # Nobody waits while there is room.
        assert len(running) >= min(cap, len(living))


# --- fairness ------------------------------------------------------------------------------------


@dataclass
class Workers:
    """Workers with some slots in all. A job takes one round, or as many as the test lets it."""

    handler: CommandHandler
    slots: int
    running: list[Claim] = field(default_factory=list)

    async def fill(self) -> list[Claim]:
        free = self.slots - len(self.running)
        taken = await claim(self.handler.store, slots=free) if free else []
        self.running += taken
        return taken

    async def end_one(self) -> None:
        await fail(self.handler, self.running.pop(0).ref)


@pytest.mark.parametrize(
    ("jobs", "slots", "cap"), [(200, 2, 2), (50, 3, 2), (50, 4, 4), (50, 4, 1)]
)
async def test_many_jobs_of_one_tenant_delay_the_one_of_another_by_no_more_than_runs_already(
    handler: CommandHandler, jobs: int, slots: int, cap: int
) -> None:
    await handler.store.work.set_cap(TENANT, cap)
    await queue(handler, jobs)
    workers = Workers(handler, slots)
    await workers.fill()
    assert len(workers.running) == cap
    (theirs,) = await queue(handler, tenant=NEIGHBOUR)
    if slots == cap:
        # All are busy: it is the next that gets a slot.
        assert await workers.fill() == []
        await workers.end_one()
    (taken, *_) = await workers.fill()
    assert taken.ref == theirs


async def test_two_tenants_with_much_work_each_share_the_slots(handler: CommandHandler) -> None:
    await queue(handler, 100)
    await queue(handler, 100, tenant=NEIGHBOUR)
    workers = Workers(handler, slots=4)
    for _ in range(20):
        await workers.fill()
        tenants = [claim.ref.tenant for claim in workers.running]
        assert sorted(tenants) == [TENANT, TENANT, NEIGHBOUR, NEIGHBOUR]
        await workers.end_one()
