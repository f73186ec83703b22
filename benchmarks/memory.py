"""What an event, a living job and a follower take of memory.

Streams are asked with `MEMORY USAGE … SAMPLES 0`, which counts every node of one. Jobs are the
growth of the server's `used_memory` by so many of them: every key that they touch, the log's and
the bell's share included. Followers are this process's own, by tracemalloc.
"""

import tracemalloc
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import anyio

from benchmarks.builds import TENANTS, fill, held, queue_jobs
from benchmarks.follow import Audience
from benchmarks.rows import Row, Say, silent
from benchmarks.servers import NO_CAP, Target
from eventstore import EventStore, Hub, connect_redis
from eventstore.keys import Keys
from eventstore.reading import stream_range
from schemas import JobRef
from service.embedded import Servers

EVENTS = 100_000
JOBS = 2_000
"""At most so many streams are looked at, and so many jobs and followers are counted."""

_LEASE_MS = 60_000


def bench_memory(
    target: Target, say: Say = silent, *, events: int = EVENTS, jobs: int = JOBS
) -> list[Row]:
    """How many bytes an event, a living job and a follower take, on a log of `events`.

    - memory_log_event, memory_job_event: in the log, and in its job's stream (twelve events each),
      beside the bytes of its values.
    - memory_job_queued, _waiting, _running: a living job with one event, all its keys: one that may
      run, one behind its tenant's cap, one that a worker has; beside the bytes of its event twice,
      as the log and the job's stream hold it.
    - memory_follower: of this process, beside a task that waits.
    """
    return target.measure(partial(_measure, events, jobs, say))


async def _measure(
    events: int, jobs: int, say: Say, store: EventStore, servers: Servers
) -> list[Row]:
    await fill(store, events, say)
    say("memory: streams")
    rows = await event_rows(store, jobs)
    say("memory: jobs")
    rows += await _jobs(store, jobs)
    say("memory: followers")
    return [*rows, await _followers(store, servers, jobs)]


async def event_rows(store: EventStore, jobs: int) -> list[Row]:
    logs = [Keys(number).log for number in range(store.partitions)]
    values = sum([await _bytes_of_values(store, log) for log in logs]) / await held(store)
    streams = [key async for key in store.redis.scan_iter(match="hr:*:job:*", count=1_000)][:jobs]
    return [
        _row(metric, await _bytes_an_entry(store, keys), "its values", values)
        for metric, keys in (("memory_log_event", logs), ("memory_job_event", streams))
    ]


async def _bytes_an_entry(store: EventStore, streams: Iterable[Any]) -> float:
    used = entries = 0
    for stream in streams:
        used += await store.redis.memory_usage(stream, samples=0) or 0
        entries += await store.redis.xlen(stream)
    return used / entries


async def _bytes_of_values(store: EventStore, stream: str) -> int:
    entries = await stream_range(store.redis, stream)
    return sum(len(value) for _, fields in entries for value in fields.values())


async def _jobs(store: EventStore, jobs: int) -> list[Row]:
    """Jobs that may run, then have a worker; and others that wait, their tenants' cap being 0."""

    async def queue() -> float:
        return await _growth(store, lambda: queue_jobs(store, jobs)) / jobs

    async def claim() -> None:
        for partition in range(store.partitions):
            while await store.work.claim(partition, "w-1", free_slots=100, lease_ms=_LEASE_MS):
                pass

    queued = await queue()
    running = queued + await _growth(store, claim) / jobs
    for tenant in TENANTS:
        await store.work.set_cap(tenant, 0)
    waiting = await queue()
    for tenant in TENANTS:
        await store.work.set_cap(tenant, NO_CAP)
    (ref,) = await queue_jobs(store, 1)
    event = 2 * await _bytes_of_values(store, store.keys(ref.tenant).job(ref.job))
    return [
        _row(f"memory_job_{state}", used, "its event, twice", event)
        for state, used in (("queued", queued), ("waiting", waiting), ("running", running))
    ]


async def _growth(store: EventStore, action: Callable[[], Awaitable[Any]]) -> float:
    before = await store.redis.info("memory")
    await action()
    after = await store.redis.info("memory")
    return float(after["used_memory"] - before["used_memory"])


async def _followers(store: EventStore, servers: Servers, followers: int) -> Row:
    refs: list[JobRef] = await queue_jobs(store, followers)
    bells = connect_redis(servers.redis_url)
    try:
        async with anyio.create_task_group() as tasks:
            hub = Hub(store, bells)
            tasks.start_soon(hub.run)
            audience = Audience(hub, refs)
            await audience.gather(tasks, 1)  # connects, and whatever is made once
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            await audience.gather(tasks, followers)
            between, _ = tracemalloc.get_traced_memory()
            for _ in range(followers):
                tasks.start_soon(anyio.sleep_forever)
            await anyio.wait_all_tasks_blocked()
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            tasks.cancel_scope.cancel()
    finally:
        await bells.aclose()
    follower = (between - before) / max(1, followers - 1)
    return _row("memory_follower", follower, "a task that waits", (after - between) / followers)


def _row(metric: str, used: float, beside: str, beside_bytes: float) -> Row:
    return Row(metric, round(used, 1), "bytes", beside, round(beside_bytes, 1))
