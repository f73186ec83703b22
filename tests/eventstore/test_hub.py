"""Following a job: every event in order, each from where the follower is, and nothing missed."""

from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
from redis.asyncio import Redis

from eventstore import CommandHandler, Hub, JobEntry, JobEvent, ProgressLine, Waker, follow
from eventstore.connection import MAX_CONNECTIONS
from schemas import JobRef, Phase
from schemas.commands import CompletePhase, RequestBuild, RequestCancel, StartJob, StartPhase

TENANT = "acme"


async def started(handler: CommandHandler) -> JobRef:
    """A job with two events."""
    ref = JobRef(TENANT, str(uuid4()))
    await handler.handle(ref, RequestBuild(TENANT, "ann", "shop", "a list"))
    await handler.handle(ref, StartJob("w1", 1))
    return ref


async def walk(handler: CommandHandler, ref: JobRef) -> None:
    """Eight more events."""
    for phase in Phase:
        await handler.handle(ref, StartPhase(phase))
        await handler.handle(ref, CompletePhase(phase, duration_ms=1))


async def take(hub: Hub, ref: JobRef, count: int, after: str = "0-0") -> list[JobEntry]:
    taken: list[JobEntry] = []
    with anyio.fail_after(20):
        async for entry in follow(hub, ref, after):
            taken.append(entry)
            if len(taken) == count:
                break
    return taken


async def test_a_follower_gets_the_history_and_then_what_comes(
    handler: CommandHandler, hub: Hub
) -> None:
    ref = await started(handler)
    seen: list[str] = []
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            async for entry in follow(hub, ref):
                seen.append(entry.id)
                if entry.id == "2-0":
                    tasks.start_soon(walk, handler, ref)
                if entry.id == "10-0":
                    break
    assert seen == [f"{version}-0" for version in range(1, 11)]


async def test_a_follower_resumes_exactly_behind_the_entry_it_has(
    handler: CommandHandler, hub: Hub
) -> None:
    ref = await started(handler)
    await walk(handler, ref)
    assert [entry.id for entry in await take(hub, ref, 3, after="4-0")] == ["5-0", "6-0", "7-0"]


async def test_events_and_progress_come_in_the_order_in_which_they_were_written(
    handler: CommandHandler, hub: Hub
) -> None:
    ref = JobRef(TENANT, str(uuid4()))
    await handler.handle(ref, RequestBuild(TENANT, "ann", "shop", "a list"))
    store = handler.store
    (claim,) = await store.work.claim(store.partition(TENANT), "w1", free_slots=1, lease_ms=60_000)
    await store.progress(claim, "log", {"text": "hello"}, time=datetime.now(UTC))
    await handler.handle(ref, StartJob("w1", 1), claim=claim)
    first, line, second = await take(hub, ref, 3)
    assert isinstance(first, JobEvent)
    assert isinstance(line, ProgressLine)
    assert (line.id, line.kind, line.data) == ("1-1", "log", b'{"text":"hello"}')
    assert isinstance(second, JobEvent)
    assert second.event.type == "JobStarted"


async def test_two_followers_see_the_same(handler: CommandHandler, hub: Hub) -> None:
    ref = await started(handler)
    seen: list[list[str]] = []

    async def follow() -> None:
        seen.append([entry.id for entry in await take(hub, ref, 10)])

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(follow)
        tasks.start_soon(walk, handler, ref)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 10


async def test_a_follower_survives_the_loss_of_every_connection(
    handler: CommandHandler, hub: Hub, redis: Redis
) -> None:
    ref = await started(handler)
    seen: list[str] = []
    with anyio.fail_after(20):
        async for entry in follow(hub, ref):
            seen.append(entry.id)
            if entry.id == "2-0":
                await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]
                await walk(handler, ref)
            if entry.id == "10-0":
                break
    assert seen == [f"{version}-0" for version in range(1, 11)]


async def test_the_number_of_connections_does_not_grow_with_the_followers(
    handler: CommandHandler, hub: Hub, redis: Redis
) -> None:
    ref = await started(handler)
    await take(hub, ref, 2)

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(take, hub, ref, 10)
        await walk(handler, ref)
    used = len(await redis.client_list(_type="normal"))
    the_hub, others = 1, 1
    assert used <= MAX_CONNECTIONS + the_hub + others


async def test_bells_that_were_missed_cost_nothing_but_a_look(
    handler: CommandHandler, hub: Hub, redis: Redis
) -> None:
    ref = await started(handler)
    await redis.delete(handler.store.keys(TENANT).bell)
    await walk(handler, ref)
    assert len(await take(hub, ref, 10)) == 10


async def test_bells_that_ring_all_the_time_are_heard_together(
    handler: CommandHandler, hub: Hub, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.hub._MOST_HEARINGS", 4)
    monkeypatch.setattr("eventstore.hub._IN_S", 2.0)

    async def hearings() -> int:
        stats: Any = await redis.info("commandstats")
        return int(stats["cmdstat_xread"]["calls"])

    refs = [await started(handler) for _ in range(20)]
    with hub.listen_job(refs[-1].job) as waker:
        before = await hearings()
        for ref in refs:
            await handler.handle(ref, RequestCancel("ann"))
        assert await waker.wait(20)
    assert await hearings() - before < len(refs) / 2


async def test_who_listens_for_work_hears_of_the_job(handler: CommandHandler, hub: Hub) -> None:
    ref = JobRef(TENANT, str(uuid4()))
    with hub.listen_work() as waker, anyio.fail_after(20):
        await handler.handle(ref, RequestBuild(TENANT, "ann", "shop", "a list"))
        await handler.handle(ref, StartJob("w1", 1))
        while not (rung := waker.take()):
            await waker.wait(60)
    assert rung == {handler.store.partition(TENANT): [ref.job]}


async def test_who_looks_for_requests_sleeps_through_what_a_jobs_worker_does(
    handler: CommandHandler, hub: Hub
) -> None:
    ref = JobRef(TENANT, str(uuid4()))
    await handler.handle(ref, RequestBuild(TENANT, "ann", "shop", "a list"))
    store = handler.store
    (claim,) = await store.work.claim(store.partition(TENANT), "w1", free_slots=1, lease_ms=60_000)
    woken = list[str]()

    async def look() -> None:
        woken.append("request")

    async def listen(waker: Waker) -> None:
        while True:
            await waker.wait(60)
            woken.append("news")

    with hub.look_for_requests(ref.job, look), hub.listen_job(ref.job) as all_news:
        async with anyio.create_task_group() as tasks:
            # Up to date with whatever rang before.
            async with aclosing(follow(hub, ref)) as entries:
                tasks.start_soon(listen, all_news)
                with anyio.fail_after(20):
                    await anext(entries)
                    await anyio.wait_all_tasks_blocked()
                    woken.clear()
                    await handler.handle(ref, StartJob("w1", 1), claim=claim)
                    await anext(entries)
                    assert woken == ["news"]
                    await handler.handle(ref, RequestCancel("ann"))
                    await anext(entries)
                    while "request" not in woken:
                        await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
