"""Who owns a job: from the claim until somebody else claims it, and not a moment longer."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
import pytest
from redis import Redis as BlockingRedis

from eventstore import (
    Claim,
    CommandHandler,
    EventStore,
    Fenced,
    Housekeeper,
    Hub,
    RedisUnavailable,
)
from eventstore.keys import GROUP
from eventstore.reading import FIRST_ENTRIES, stream_range
from generator import GenerationService, Heart, Worker
from generator import worker as worker_module
from schemas import Job, JobRef
from schemas.commands import ConfirmCancel, RequestBuild, RequestCancel, StartJob
from service.embedded import Servers
from tests.generator.doubles import Signal

pytestmark = pytest.mark.both_servers

TENANT = "acme"
LEASE_MS = 60_000
LONG_MS = 10_000_000
NOW = datetime(2026, 3, 1, tzinfo=UTC)


async def queue(handler: CommandHandler, tier: Any = "free") -> JobRef:
    ref = JobRef(TENANT, str(uuid4()))
    await handler.handle(ref, RequestBuild(TENANT, "ann", "shop", "a list", tier=tier))
    return ref


async def claim(
    store: EventStore,
    worker: str,
    *,
    slots: int = 9,
    lease_ms: int = LEASE_MS,
    heard_of: Sequence[JobRef] = (),
) -> list[Claim]:
    return await store.work.claim(
        store.partition(TENANT),
        worker,
        free_slots=slots,
        lease_ms=lease_ms,
        heard_of=[ref.job for ref in heard_of],
    )


async def claimed(handler: CommandHandler, worker: str = "w1", tier: Any = "free") -> Claim:
    await queue(handler, tier)
    (taken,) = await claim(handler.store, worker)
    return taken


async def fall_silent(store: EventStore, claim: Claim) -> None:
    """As if its last heartbeat was long ago."""
    await store.redis.xclaim(
        store.keys(TENANT).work(claim.work_class),
        GROUP,
        claim.worker,
        0,
        [claim.entry_id],
        idle=LONG_MS,
        justid=True,
    )


async def silent_for_ms(store: EventStore, claim: Claim) -> int:
    (pending,) = await store.redis.xpending_range(
        store.keys(TENANT).work(claim.work_class), GROUP, claim.entry_id, claim.entry_id, 1
    )
    return int(pending["time_since_delivered"])


async def a_lease_passes(store: EventStore) -> None:
    """Since the log was opened."""
    await store.redis.hset(store.keys(TENANT).meta, "opened", "0")


async def taken_over(store: EventStore, claimed: Claim, worker: str = "w2") -> Claim:
    await fall_silent(store, claimed)
    await a_lease_passes(store)
    (taken,) = await claim(store, worker)
    return taken


async def beat(store: EventStore, claim: Claim) -> bool:
    keys = store.keys(TENANT)
    answer = await store.scripts.plain(
        "heartbeat",
        [keys.runs, keys.work(claim.work_class)],
        [claim.ref.job, claim.worker, claim.attempt],
    )
    return bool(answer == b"held")


async def destroy_groups(store: EventStore, *classes: str) -> None:
    for name in classes:
        assert await store.redis.xgroup_destroy(store.keys(TENANT).work(name), GROUP)


# --- claim and takeover --------------------------------------------------------------------------


async def cancelled(handler: CommandHandler, claim: Claim) -> None:
    """As far as its worker has to hear of it."""
    await handler.handle(claim.ref, StartJob(claim.worker, claim.attempt), claim=claim)
    await handler.handle(claim.ref, RequestCancel(by="ann"))


@pytest.mark.parametrize("tier", ["free", "pro"])
async def test_an_abandoned_job_that_is_cancelled_needs_no_free_slot(
    handler: CommandHandler, tier: str
) -> None:
    store = handler.store
    lost = await claimed(handler, tier=tier)
    await cancelled(handler, lost)
    await fall_silent(store, await claimed(handler))  # abandoned too, and not cancelled
    await fall_silent(store, lost)
    assert await claim(store, "w2", slots=0) == []  # nobody is silent yet, just after the opening
    await a_lease_passes(store)
    (taken,) = await claim(store, "w2", slots=0)
    assert (taken.ref, taken.worker, taken.attempt) == (lost.ref, "w2", 2)
    assert await claim(store, "w3", slots=0) == []


async def test_a_job_that_is_cancelled_takes_nobody_elses_slot(handler: CommandHandler) -> None:
    lost = await claimed(handler)
    await cancelled(handler, lost)
    await fall_silent(handler.store, lost)
    await a_lease_passes(handler.store)
    new = await queue(handler)
    taken = await claim(handler.store, "w2", slots=1)
    assert [one.ref for one in taken] == [lost.ref, new]


async def test_a_job_that_is_cancelled_is_left_to_its_living_worker(
    handler: CommandHandler,
) -> None:
    lost = await claimed(handler)
    await cancelled(handler, lost)
    await a_lease_passes(handler.store)
    assert await claim(handler.store, "w2", slots=0) == []


async def test_a_job_that_was_cancelled_is_not_remembered(handler: CommandHandler) -> None:
    store = handler.store
    lost = await claimed(handler)
    await cancelled(handler, lost)
    assert await store.redis.exists(store.keys(TENANT).cancelling)
    await handler.handle(lost.ref, ConfirmCancel(), claim=lost)
    assert await claim(store, "w2", slots=0) == []
    assert not await store.redis.exists(store.keys(TENANT).cancelling)


async def test_a_job_that_was_heard_of_is_claimed_with_the_begin_of_its_stream(
    handler: CommandHandler,
) -> None:
    store = handler.store
    unheard, heard, late = [await queue(handler) for _ in range(3)]
    beyond = JobRef(TENANT, "beyond-the-slots")
    await store.redis.set(store.keys(TENANT).job(beyond.job), "not looked at")
    taken = await claim(store, "w1", slots=2, heard_of=[heard, late, beyond])
    begins = {one.ref: one.begin for one in taken}
    assert begins == {
        unheard: [],
        heard: await stream_range(store.redis, store.keys(TENANT).job(heard.job)),
    }
    assert len(begins[heard]) == 1
    # Of one that somebody else has nothing is said.
    (other,) = await claim(store, "w2", heard_of=[heard])
    assert (other.ref, other.begin) == (late, [])


async def test_a_job_that_was_claimed_with_its_begin_is_not_read_again(
    handler: CommandHandler,
) -> None:
    store, ref = handler.store, await queue(handler)
    job = await handler.load(ref)
    (taken,) = await claim(store, "w1", heard_of=[ref])
    await store.redis.delete(store.keys(TENANT).job(ref.job))
    assert await handler.load_claimed(taken) == job


async def test_behind_the_begin_that_came_with_a_claim_a_job_is_read_on(
    handler: CommandHandler,
) -> None:
    store, first = handler.store, await claimed(handler)
    for number in range(FIRST_ENTRIES):
        await store.progress(first, "log", {"text": str(number)}, time=NOW)
    await handler.handle(first.ref, StartJob(first.worker, first.attempt), claim=first)
    await store.work.release(first)
    (second,) = await claim(store, "w2", heard_of=[first.ref])
    assert len(second.begin) == FIRST_ENTRIES
    job = await handler.load_claimed(second)
    assert (job.version, job) == (2, await handler.load(first.ref))


async def test_of_workers_that_claim_at_once_each_gets_other_jobs(handler: CommandHandler) -> None:
    jobs = [await queue(handler) for _ in range(6)]
    taken: list[Claim] = []

    async def take(worker: str) -> None:
        taken.extend(await claim(handler.store, worker, slots=2))

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(take, f"w{number}")
    assert sorted(one.ref.job for one in taken) == sorted(ref.job for ref in jobs)


async def test_of_workers_that_take_over_at_once_one_succeeds(handler: CommandHandler) -> None:
    store, old = handler.store, await claimed(handler)
    await fall_silent(store, old)
    await a_lease_passes(store)
    taken: list[Claim] = []

    async def take(worker: str) -> None:
        taken.extend(await claim(store, worker))

    async with anyio.create_task_group() as tasks:
        for number in range(2, 7):
            tasks.start_soon(take, f"w{number}")
    assert [one.attempt for one in taken] == [2]


async def test_a_worker_with_no_free_slot_takes_nothing(handler: CommandHandler) -> None:
    store, old = handler.store, await claimed(handler)
    await fall_silent(store, old)
    await a_lease_passes(store)
    await queue(handler)
    assert await claim(store, "w2", slots=0) == []
    assert await beat(store, old)


async def test_abandoned_work_goes_before_new_work_also_before_new_high_work(
    handler: CommandHandler,
) -> None:
    store, old = handler.store, await claimed(handler)
    await queue(handler, "pro")
    await fall_silent(store, old)
    await a_lease_passes(store)
    (first,) = await claim(store, "w2", slots=1)
    assert first.ref == old.ref


async def test_a_job_whose_owner_lives_is_not_taken_over(handler: CommandHandler) -> None:
    store, old = handler.store, await claimed(handler)
    await fall_silent(store, old)
    await a_lease_passes(store)
    assert await beat(store, old)
    assert await claim(store, "w2") == []


async def test_nobody_is_taken_over_within_one_lease_after_the_log_was_opened(
    handler: CommandHandler,
) -> None:
    store, old = handler.store, await claimed(handler)
    await fall_silent(store, old)
    assert await claim(store, "w2") == []
    # Another server process: it may have been away for longer than any lease.
    await a_lease_passes(store)
    await store.redis.hset(store.keys(TENANT).meta, "run", "before")
    await store.verification.verify_again()
    assert await claim(store, "w2") == []
    assert await beat(store, old)
    # New work is given out meanwhile.
    new = await queue(handler)
    assert [one.ref for one in await claim(store, "w2")] == [new]


async def test_a_worker_may_take_over_its_own_job_and_is_another_attempt_then(
    handler: CommandHandler,
) -> None:
    store, old = handler.store, await claimed(handler)
    again = await taken_over(store, old, "w1")
    assert (again.worker, again.attempt) == ("w1", 2)
    assert not await beat(store, old)
    assert await beat(store, again)


# --- the predecessor -----------------------------------------------------------------------------

FENCED: dict[str, Callable[[CommandHandler, Claim], Awaitable[object]]] = {
    "append": lambda handler, old: handler.handle(old.ref, StartJob("w1", 1), claim=old),
    "report progress": lambda handler, old: handler.store.progress(old, "log", {}, time=NOW),
}


@pytest.mark.parametrize("act", FENCED)
async def test_from_the_takeover_on_the_predecessor_can_no_longer(
    act: str, handler: CommandHandler
) -> None:
    store, old = handler.store, await claimed(handler)
    await taken_over(store, old)
    stream = await store.redis.xrange(store.keys(TENANT).job(old.ref.job))
    # Its successor has not appended anything yet.
    with pytest.raises(Fenced) as caught:
        await FENCED[act](handler, old)
    assert (caught.value.owner, caught.value.attempt) == ("w2", 2)
    assert await store.redis.xrange(store.keys(TENANT).job(old.ref.job)) == stream


@pytest.mark.parametrize("tier", ["free", "pro"])
async def test_from_the_takeover_on_the_predecessor_can_neither_hand_back_nor_hold(
    tier: str, handler: CommandHandler
) -> None:
    store, old = handler.store, await claimed(handler, tier=tier)
    new = await taken_over(store, old)
    await fall_silent(store, new)
    assert not await beat(store, old)
    assert await silent_for_ms(store, new) >= LONG_MS
    assert not await store.work.release(old)
    assert await beat(store, new)
    assert await silent_for_ms(store, new) < LONG_MS
    assert await claim(store, "w3") == []


async def test_who_handed_a_job_back_has_no_effect_on_it_though_nobody_has_it(
    handler: CommandHandler,
) -> None:
    store, old = handler.store, await claimed(handler)
    assert await store.work.release(old)
    for act in FENCED.values():
        with pytest.raises(Fenced) as caught:
            await act(handler, old)
        assert caught.value.owner == "-"
    assert not await beat(store, old)


@pytest.mark.parametrize("opened", ["long ago", "lately"])
async def test_what_was_handed_back_goes_before_all_that_is_new(
    handler: CommandHandler, opened: str
) -> None:
    store, old = handler.store, await claimed(handler)
    living = await claimed(handler)
    for _ in range(3):
        await queue(handler)
    assert await store.work.release(old)
    if opened == "long ago":
        await a_lease_passes(store)
    (new,) = await claim(store, "w2", slots=1)
    assert (new.ref, new.attempt, new.deliveries) == (old.ref, 2, 1)
    assert await silent_for_ms(store, new) < LONG_MS
    assert await beat(store, living)


async def test_the_owner_of_a_job_that_was_ended_by_others_is_fenced(
    handler: CommandHandler,
) -> None:
    store, old = handler.store, await claimed(handler)
    await handler.handle(old.ref, RequestCancel(by="ann"))
    with pytest.raises(Fenced):
        await store.progress(old, "log", {}, time=NOW)
    assert not await beat(store, old)
    assert not await store.work.release(old)
    assert await claim(store, "w2") == []


async def test_a_job_handed_back_is_told_to_idle_workers(handler: CommandHandler) -> None:
    store, old = handler.store, await claimed(handler)
    await store.work.release(old)
    *_, (_, rung) = await stream_range(store.redis, store.keys(TENANT).bell)
    assert rung == {b"job": old.ref.job.encode(), b"what": b"queued"}


# --- the heart -----------------------------------------------------------------------------------


@pytest.fixture
def fast_heart(handler: CommandHandler, servers: Servers) -> Iterator[Heart]:
    with Heart(
        lambda: BlockingRedis.from_url(servers.redis_url),
        lease_ms=30,
        partition_of=handler.store.partition,
    ) as heart:
        yield heart


async def until_it_beats(store: EventStore, claim: Claim) -> None:
    """Return when a heartbeat has come after this call."""
    await fall_silent(store, claim)
    with anyio.fail_after(20):
        while await silent_for_ms(store, claim) >= LONG_MS:
            await anyio.lowlevel.checkpoint()


async def test_a_heart_beats_for_all_it_holds_and_stops_at_the_limit_of_each(
    handler: CommandHandler, fast_heart: Heart
) -> None:
    store = handler.store
    longer, limited = await claimed(handler), await claimed(handler)
    lost: list[Claim] = []
    with (
        fast_heart.holding(longer, lambda: lost.append(longer), for_s=3600),
        fast_heart.holding(limited, lambda: lost.append(limited), for_s=0),
    ):
        await until_it_beats(store, longer)
        await fall_silent(store, limited)
        # The heart comes past both in every round, so after another two it has left this one out.
        for _ in range(2):
            await until_it_beats(store, longer)
        assert await silent_for_ms(store, limited) >= LONG_MS
        await a_lease_passes(store)
        (taken,) = await claim(store, "w2", slots=1)
        assert taken.ref == limited.ref
    # The one is no loss to the heart: nobody asked it to hold that longer.
    assert lost == []


async def test_a_heart_says_that_a_job_was_taken_or_ended_by_others_and_of_no_other(
    handler: CommandHandler, fast_heart: Heart
) -> None:
    store = handler.store
    living, ended, silent = [await claimed(handler) for _ in range(3)]
    lost = Signal(), Signal()
    with (
        fast_heart.holding(living, pytest.fail, for_s=3600),
        fast_heart.holding(ended, lost[0].set, for_s=3600),
        fast_heart.holding(silent, lost[1].set, for_s=3600),
    ):
        await handler.handle(ended.ref, RequestCancel(by="ann"))
        await lost[0].wait()
        assert await store.work.release(silent)
        await lost[1].wait()
        await until_it_beats(store, living)


async def test_a_heart_survives_whatever_a_beat_raises(
    handler: CommandHandler, servers: Servers
) -> None:
    raised: list[Exception] = []

    def partition_of(tenant: str) -> int:
        if not raised:
            raised.append(ZeroDivisionError())
            raise raised[0]
        return handler.store.partition(tenant)

    held = await claimed(handler)
    connect = partial(BlockingRedis.from_url, servers.redis_url)
    with (
        Heart(connect, lease_ms=30, partition_of=partition_of) as heart,
        heart.holding(held, pytest.fail, for_s=3600),
    ):
        await until_it_beats(handler.store, held)
    assert raised


async def test_a_heart_stops_with_the_block_that_held_the_claim(
    handler: CommandHandler, fast_heart: Heart
) -> None:
    store = handler.store
    other, held = await claimed(handler), await claimed(handler)
    with fast_heart.holding(other, lambda: None, for_s=3600):
        with fast_heart.holding(held, lambda: None, for_s=3600):
            await until_it_beats(store, held)
        await until_it_beats(store, other)  # the round under way is over
        await fall_silent(store, held)
        for _ in range(2):
            await until_it_beats(store, other)
        assert await silent_for_ms(store, held) >= LONG_MS


# --- a consumer group that somebody destroyed -----------------------------------------------------


async def test_after_a_group_was_destroyed_each_job_is_where_it_was(
    handler: CommandHandler,
) -> None:
    store = handler.store
    owned = [await claimed(handler), await claimed(handler), await claimed(handler, tier="pro")]
    back = await claimed(handler)
    assert await store.work.release(back)
    free = {back.ref, await queue(handler), await queue(handler, "pro")}
    await destroy_groups(store, "high", "normal")
    await store.verification.verify_again()
    await a_lease_passes(store)
    assert {one.ref for one in await claim(store, "w2")} == free
    assert await claim(store, "w2") == []
    for one in owned:
        assert await beat(store, one)
        await handler.handle(one.ref, StartJob("w1", one.attempt), claim=one)
        await fall_silent(store, one)
    taken = await claim(store, "w3")
    assert {(one.ref, one.attempt) for one in taken} == {(one.ref, 2) for one in owned}


async def test_a_claim_that_finds_one_group_destroyed_takes_nothing_from_the_other(
    handler: CommandHandler,
) -> None:
    store = handler.store
    await queue(handler, "pro")
    await destroy_groups(store, "normal")
    before = await store.redis.hgetall(store.keys(TENANT).runs)
    with pytest.raises(RedisUnavailable, match="NOGROUP"):
        await claim(store, "w1")
    assert await store.redis.hgetall(store.keys(TENANT).runs) == before
    await store.verification.verify_again()
    assert [one.attempt for one in await claim(store, "w1")] == [1]


async def test_of_jobs_that_were_given_out_only_those_without_an_owner_are_given_out_again(
    handler: CommandHandler,
) -> None:
    store = handler.store
    first, second, third = [await claimed(handler) for _ in range(3)]
    assert await store.work.release(second)
    await destroy_groups(store, "normal")
    await store.verification.verify_again()
    (taken,) = await claim(store, "w2")
    assert taken.ref == second.ref
    assert await beat(store, first)
    assert await beat(store, third)


async def test_a_work_stream_that_was_deleted_takes_new_jobs(handler: CommandHandler) -> None:
    store = handler.store
    await store.redis.delete(store.keys(TENANT).work("normal"))
    await store.verification.verify_again()
    ref = await queue(handler)
    assert [one.ref for one in await claim(store, "w1")] == [ref]


# --- workers that are gone -----------------------------------------------------------------------


async def consumers(store: EventStore, work_class: str = "normal") -> list[str]:
    work = store.keys(TENANT).work(work_class)
    return sorted(one["name"].decode() for one in await store.redis.xinfo_consumers(work, GROUP))


async def retire(store: EventStore, silent_ms: int = 0) -> int:
    return await store.work.retire(store.partition(TENANT), silent_ms=silent_ms)


async def test_consumers_that_hold_nothing_are_removed_and_those_that_hold_something_stay(
    handler: CommandHandler,
) -> None:
    store, held = handler.store, await claimed(handler, "busy")
    await claimed(handler, "busy", tier="pro")
    done = await claimed(handler, "done")
    await handler.handle(done.ref, RequestCancel(by="ann"))
    assert await consumers(store) == ["busy", "done"]
    await retire(store)
    assert await consumers(store) == ["busy"]
    assert await consumers(store, "high") == ["busy"]
    assert await beat(store, held)
    assert await retire(store) == 0


async def test_a_silent_consumer_that_holds_a_job_stays_so_that_the_job_is_found(
    handler: CommandHandler,
) -> None:
    store, old = handler.store, await claimed(handler, "dead")
    await fall_silent(store, old)
    await a_lease_passes(store)
    await retire(store)
    assert await consumers(store) == ["dead"]
    (taken,) = await claim(store, "w2")
    assert taken.ref == old.ref
    await retire(store)
    assert await consumers(store) == ["w2"]


async def test_an_idle_consumer_that_was_heard_lately_stays(handler: CommandHandler) -> None:
    store, done = handler.store, await claimed(handler, "idle")
    await handler.handle(done.ref, RequestCancel(by="ann"))
    assert await retire(store, silent_ms=3_600_000) == 0
    assert await consumers(store) == ["idle"]
    housekeeper = Housekeeper(store, keep_s=3600, keep_events=1_000, lease_s=3600)
    await housekeeper.keep(store.partition(TENANT))
    assert await consumers(store) == ["idle"]


async def test_no_job_is_lost_by_consumers_that_are_removed_while_workers_claim(
    handler: CommandHandler,
) -> None:
    store, jobs = handler.store, [await queue(handler) for _ in range(30)]
    taken: list[Claim] = []

    async def work(name: str) -> None:
        while got := await claim(store, name, slots=1):
            taken.extend(got)
            if len(taken) % 3 == 0:
                await store.work.release(got[0])

    async def remove(done: anyio.Event) -> None:
        while not done.is_set():
            await retire(store)

    done = anyio.Event()
    async with anyio.create_task_group() as removing:
        removing.start_soon(remove, done)
        async with anyio.create_task_group() as working:
            for number in range(4):
                working.start_soon(work, f"w{number}")
        done.set()
    # Each is in somebody's hands: its owner can still say that it lives.
    newest = {one.ref: one for one in sorted(taken, key=lambda one: one.attempt)}
    assert set(newest) == set(jobs)
    for one in newest.values():
        assert await beat(store, one)
        await fall_silent(store, one)
    await a_lease_passes(store)
    assert len(await claim(store, "last", slots=99)) == 30


# --- waking --------------------------------------------------------------------------------------


class Noting(GenerationService):
    """Says which claim it got, and is done."""

    def __init__(self, handler: CommandHandler) -> None:
        self.handler = handler
        self.got: list[Claim] = []
        self.changed = anyio.Event()

    @property
    def longest_s(self) -> float:
        return 3600.0

    async def execute_build(self, claim: Claim) -> Job:
        self.got.append(claim)
        self.changed.set()
        self.changed = anyio.Event()
        await self.handler.handle(claim.ref, RequestCancel(by="ann"))
        return await self.handler.load(claim.ref)

    async def until_got(self, ref: JobRef) -> None:
        with anyio.fail_after(20):
            while ref not in [claim.ref for claim in self.got]:
                await self.changed.wait()


async def test_an_idle_worker_is_woken_by_the_bell_alone(
    handler: CommandHandler,
    hub: Hub,
    fast_heart: Heart,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "LOOK_AGAIN_S", 3600)
    service = Noting(handler)
    worker = Worker(handler.store, hub, service, fast_heart, lease_ms=LEASE_MS, slots=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        for _ in range(3):
            await service.until_got(await queue(handler))
        tasks.cancel_scope.cancel()
