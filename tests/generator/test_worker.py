"""Workers: what they take, what they give back, and how long it stays theirs."""

import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
from redis import Redis as BlockingRedis

from eventstore import Claim, CommandHandler, Hub, JobEvent, WorkWaker, follow
from generator import Deadlines, GenerationService, Heart, Worker
from schemas import Job, JobRef, Status
from schemas.commands import RequestBuild, RequestCancel, StartJob
from service.embedded import Servers
from tests.projector.writing import ONE_PER_PARTITION

pytestmark = pytest.mark.anyio

LEASE_MS = 60_000


class SlowService(GenerationService):
    """Holds each build until the test lets it go."""

    def __init__(self, handler: CommandHandler) -> None:
        self.handler = handler
        self.running: list[Claim] = []
        self.changed = anyio.Event()
        self.let_go = anyio.Event()
        self._deadlines = Deadlines()

    async def execute_build(self, claim: Claim) -> Job:
        self.running.append(claim)
        self._tell()
        try:
            await self.let_go.wait()
        finally:
            self.running.remove(claim)
            self._tell()
        return await self.handler.load(claim.ref)

    async def until_running(self, number: int) -> None:
        with anyio.fail_after(20):
            while len(self.running) != number:
                await self.changed.wait()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


@pytest.fixture
def heart(handler: CommandHandler, servers: Servers) -> Iterator[Heart]:
    with Heart(
        lambda: BlockingRedis.from_url(servers.redis_url),
        lease_ms=LEASE_MS,
        partition_of=handler.store.partition,
    ) as beating:
        yield beating


@asynccontextmanager
async def working(
    handler: CommandHandler, hub: Hub, heart: Heart, service: SlowService, *, slots: int
) -> AsyncIterator[None]:
    worker = Worker(handler.store, hub, service, heart, lease_ms=LEASE_MS, slots=slots)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        yield
        tasks.cancel_scope.cancel()


async def queue(handler: CommandHandler, tenant: str = "acme") -> JobRef:
    ref = JobRef(tenant, str(uuid4()))
    await handler.handle(ref, RequestBuild(tenant, "ann", "shop", "a list"))
    return ref


async def test_a_worker_takes_no_more_than_it_has_slots_for(
    handler: CommandHandler, hub: Hub, heart: Heart
) -> None:
    for number in range(6):
        await queue(handler, f"tenant-{number}")
    service = SlowService(handler)
    async with working(handler, hub, heart, service, slots=2):
        await service.until_running(2)
        still_new = 0
        for partition in range(handler.store.partitions):
            still_new += len(
                await handler.store.work.claim(partition, "other", free_slots=9, lease_ms=LEASE_MS)
            )
        assert still_new == 4


async def test_an_idle_worker_is_woken_by_new_work(
    handler: CommandHandler, hub: Hub, heart: Heart
) -> None:
    service = SlowService(handler)
    async with working(handler, hub, heart, service, slots=1):
        ref = await queue(handler)
        await service.until_running(1)
        assert service.running[0].ref == ref


async def test_only_where_it_rang_is_asked_unless_work_may_wait_elsewhere(
    handler: CommandHandler, hub: Hub, heart: Heart, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = handler.store, list[int]()
    claim = store.work.claim

    async def asking(partition: int, *args: Any, **options: Any) -> list[Claim]:
        asked.append(partition)
        return await claim(partition, *args, **options)

    monkeypatch.setattr(store.work, "claim", asking)
    service, waker = SlowService(handler), WorkWaker()
    worker = Worker(store, hub, service, heart, lease_ms=LEASE_MS, slots=1)
    worker._look_again_s = math.inf
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            waker.ring(3, "a")
            await worker._claim_round(tasks, waker)
        # At first it does not know yet whether anything waits.
        assert asked == [0, 1, 2, 3, 3]
        asked.clear()
        waker.ring(2, "b")
        await queue(handler, ONE_PER_PARTITION[2])
        await worker._claim_round(tasks, waker)
        waker.ring(0, "c")
        service.let_go.set()
        await service.until_running(0)
        while worker.running:
            await anyio.lowlevel.checkpoint()
        await worker._claim_round(tasks, waker)
        # The one slot was taken when 0 rang; and 2, which gave all it was asked for, may have more.
        assert asked == [2, 0, 2]


async def test_a_job_that_rang_is_claimed_with_the_begin_of_its_stream(
    handler: CommandHandler, hub: Hub, heart: Heart
) -> None:
    service, waker = SlowService(handler), WorkWaker()
    worker = Worker(handler.store, hub, service, heart, lease_ms=LEASE_MS, slots=1)
    ref = await queue(handler)
    waker.ring(handler.store.partition(ref.tenant), ref.job)
    async with anyio.create_task_group() as tasks:
        await worker._claim_round(tasks, waker)
        await service.until_running(1)
        assert [entry_id for entry_id, _ in service.running[0].begin] == ["1-0"]
        service.let_go.set()


async def test_all_are_asked_again_after_a_while_also_when_only_one_rings(
    handler: CommandHandler, hub: Hub, heart: Heart, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = handler.store, list[int]()

    async def asking(partition: int, *_: Any, **__: Any) -> list[Claim]:
        asked.append(partition)
        return []

    monkeypatch.setattr(store.work, "claim", asking)
    waker = WorkWaker()
    worker = Worker(store, hub, SlowService(handler), heart, lease_ms=LEASE_MS, slots=1)
    worker._look_again_s = 0.0  # a while that has always passed
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            waker.ring(3, "a")
            await worker._claim_round(tasks, waker)
    assert asked == [0, 1, 2, 3, 1, 2, 3, 0]


async def test_a_worker_that_ends_hands_its_jobs_back(
    handler: CommandHandler, hub: Hub, heart: Heart
) -> None:
    ref = await queue(handler)
    service = SlowService(handler)
    async with working(handler, hub, heart, service, slots=1):
        await service.until_running(1)
    # At once, although the lease has not run out. The guard after opening is not what is asked.
    (claim,) = await handler.store.work.claim(
        handler.store.partition("acme"), "next", free_slots=1, lease_ms=1
    )
    assert (claim.ref, claim.attempt) == (ref, 2)


async def test_a_job_that_cannot_be_read_does_not_end_the_worker_of_the_others(
    handler: CommandHandler, hub: Hub, heart: Heart
) -> None:
    class Stumbling(SlowService):
        async def execute_build(self, claim: Claim) -> Job:
            if claim.ref == unreadable:
                raise ValueError("its events make no sense")
            return await super().execute_build(claim)

    unreadable = await queue(handler)
    service = Stumbling(handler)
    async with working(handler, hub, heart, service, slots=1):
        fine = await queue(handler)
        await service.until_running(1)
        assert service.running[0].ref == fine


async def test_a_full_worker_ends_what_is_cancelled_and_has_lost_its_worker(
    handler: CommandHandler, hub: Hub, heart: Heart
) -> None:
    service, store = SlowService(handler), handler.store
    async with working(handler, hub, heart, service, slots=1):
        busy = await queue(handler)
        await service.until_running(1)
        lost = await queue(handler)
        (claim,) = await store.work.claim(
            store.partition("acme"), "gone", free_slots=1, lease_ms=LEASE_MS
        )
        await handler.handle(lost, StartJob("gone", 1), claim=claim)
        await handler.handle(lost, RequestCancel(by="ann"))
        await store.work.release(claim)  # at once, as if a lease had passed
        waiting = await queue(handler)
        await service.until_running(2)
        assert {claim.ref for claim in service.running} == {busy, lost}
        assert await store.work.is_in_hand(waiting)


async def test_high_work_goes_before_normal_work(handler: CommandHandler) -> None:
    normal, high = JobRef("acme", str(uuid4())), JobRef("acme", str(uuid4()))
    await handler.handle(normal, RequestBuild("acme", "ann", "shop", "a list"))
    await handler.handle(high, RequestBuild("acme", "ann", "shop", "a list", tier="pro"))
    (claim,) = await handler.store.work.claim(
        handler.store.partition("acme"), "w", free_slots=1, lease_ms=LEASE_MS
    )
    assert claim.ref == high


async def test_a_heartbeat_begins_the_lease_anew(handler: CommandHandler, servers: Servers) -> None:
    await queue(handler)
    store = handler.store
    (claim,) = await store.work.claim(store.partition("acme"), "w", free_slots=1, lease_ms=LEASE_MS)
    work = store.keys("acme").work("normal")
    await store.redis.xclaim(
        work, "generators", "w", 0, [claim.entry_id], idle=10_000_000, justid=True
    )
    fast = Heart(
        lambda: BlockingRedis.from_url(servers.redis_url),
        lease_ms=30,
        partition_of=store.partition,
    )
    with fast, fast.holding(claim, lambda: None, for_s=60), anyio.fail_after(20):
        while True:
            (pending,) = await store.redis.xpending_range(work, "generators", "-", "+", 1)
            if int(pending["time_since_delivered"]) < 10_000_000:
                break


async def test_a_worker_learns_that_its_job_was_taken_over(
    handler: CommandHandler, servers: Servers
) -> None:
    await queue(handler)
    store = handler.store
    partition = store.partition("acme")
    (claim,) = await store.work.claim(partition, "w1", free_slots=1, lease_ms=LEASE_MS)
    lost = threading.Event()
    fast = Heart(
        lambda: BlockingRedis.from_url(servers.redis_url),
        lease_ms=30,
        partition_of=store.partition,
    )
    await store.work.release(claim)
    await store.work.claim(partition, "w2", free_slots=1, lease_ms=0)
    with fast, fast.holding(claim, lost.set, for_s=60):
        assert await anyio.to_thread.run_sync(lost.wait, 20)


async def test_no_job_is_taken_over_within_one_lease_after_the_log_was_opened(
    handler: CommandHandler,
) -> None:
    await queue(handler)
    store = handler.store
    partition = store.partition("acme")
    (claim,) = await store.work.claim(partition, "w1", free_slots=1, lease_ms=LEASE_MS)
    work = store.keys("acme").work("normal")
    await store.redis.xclaim(
        work, "generators", "w1", 0, [claim.entry_id], idle=10_000_000, justid=True
    )
    assert await store.work.claim(partition, "w2", free_slots=1, lease_ms=LEASE_MS) == []
    await store.redis.hset(store.keys("acme").meta, "opened", "0")
    (taken,) = await store.work.claim(partition, "w2", free_slots=1, lease_ms=LEASE_MS)
    assert taken.attempt == 2


async def test_the_simulated_loop_is_followed_to_its_end_by_a_worker(
    handler: CommandHandler, hub: Hub, heart: Heart, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from generator import ArtifactStore

    folder = tmp_path_factory.mktemp("build")
    service = GenerationService(
        handler,
        hub,
        ArtifactStore.in_folder(folder),
        runner=None,
        sandbox_runtime_factory=None,
        workspace_root=folder,
    )
    worker = Worker(handler.store, hub, service, heart, lease_ms=LEASE_MS, slots=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        ref = await queue(handler)
        seen = []
        with anyio.fail_after(20):
            async for entry in follow(hub, ref):
                if isinstance(entry, JobEvent):
                    seen.append(entry.event.version)
                    if entry.event.type == "JobReady":
                        break
        tasks.cancel_scope.cancel()
    assert seen == list(range(1, 12))
    assert (await handler.load(ref)).status is Status.READY
