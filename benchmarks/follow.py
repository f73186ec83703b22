"""How soon a follower has an event, and how many connections followers take.

Appends, hub and followers share one process and one event loop: what serves a page and what drives
a build would be two. Appends are due at a fixed rate whether or not the ones before are done, and
an event's time begins when its append was due, so that a loop that lags counts as well.
"""

import time
from contextlib import aclosing
from functools import partial
from statistics import median, quantiles

import anyio
from anyio.abc import TaskGroup

from benchmarks.builds import PROJECT, new_event, queue_jobs
from benchmarks.rows import ROUNDS, Row, Say, silent
from benchmarks.servers import Target
from eventstore import EventStore, Hub, JobEvent, connect_redis, follow
from eventstore.connection import MAX_CONNECTIONS
from schemas import JobRef, Phase
from schemas.events import PhaseStarted
from service.embedded import Servers

EVENTS = 15_000
FOLLOWERS = 2_000
GROUP = 100
EVENTS_A_SECOND = 500
LIMIT_MS = 50.0


def bench_follow(
    target: Target, say: Say = silent, *, events: int = EVENTS, followers: int = FOLLOWERS
) -> list[Row]:
    """How soon 2,000 followers in one process have `events`, which come at 500 a second.

    - follow_p50_ms, follow_p99_ms: from the append to its follower, beside the limit of 50 ms.
    - follow_connections: to Redis with 2,000 followers, beside one follower under the same load.
      The store's pool is filled first: how many of its connections a process has made so far
      depends on its busiest moment, not on its followers.
    """
    return target.measure(partial(_measure, events, followers, say))


async def _measure(
    events: int, followers: int, say: Say, store: EventStore, servers: Servers
) -> list[Row]:
    bells = connect_redis(servers.redis_url)
    p50_ms: list[float] = []
    p99_ms: list[float] = []
    try:
        async with anyio.create_task_group() as tasks:
            hub = Hub(store, bells)
            tasks.start_soon(hub.run)
            say(f"queueing {followers:,} jobs")
            await _fill_pool(store)
            audience = Audience(hub, await queue_jobs(store, followers))
            await audience.gather(tasks, 1)
            say("follow: one follower")
            await audience.hear(events // ROUNDS)
            alone = len(await store.redis.client_list())
            await audience.gather(tasks, followers)
            for number in range(1, ROUNDS + 1):
                say(f"follow: {followers:,} followers, round {number} of {ROUNDS}")
                cuts = quantiles(await audience.hear(events // ROUNDS), n=100)
                p50_ms.append(cuts[49])
                p99_ms.append(cuts[98])
            together = len(await store.redis.client_list())
            tasks.cancel_scope.cancel()
    finally:
        await bells.aclose()
    return [
        Row("follow_p50_ms", round(median(p50_ms), 3), "ms", "the limit", LIMIT_MS),
        Row("follow_p99_ms", round(median(p99_ms), 3), "ms", "the limit", LIMIT_MS),
        Row("follow_connections", together, "connections", "with 1 follower", alone),
    ]


async def _fill_pool(store: EventStore) -> None:
    async def connect() -> None:
        await store.redis.ping()

    async with anyio.create_task_group() as tasks:
        for _ in range(MAX_CONNECTIONS):
            tasks.start_soon(connect)


class Audience:
    """Jobs and their followers, the first jobs' first; every event is heard by its job's."""

    def __init__(self, hub: Hub, refs: list[JobRef]) -> None:
        self._hub = hub
        self._refs = refs
        self._versions = [1] * len(refs)
        self._turns = [anyio.Lock() for _ in refs]
        self._followed = 0
        self._due: dict[str, float] = {}
        self._latencies_ms: list[float] = []
        self._all_heard = anyio.Event()

    async def gather(self, tasks: TaskGroup, followers: int) -> None:
        """Have the first so many jobs followed; returns when all of them have caught up.

        They come in groups, as people do: all at once they would wait for the pool's connections.
        """
        while self._followed < followers:
            group = range(self._followed, min(self._followed + GROUP, followers))
            caught_up = anyio.Semaphore(0)
            for number in group:
                tasks.start_soon(self._follow, number, caught_up)
            for _ in group:
                await caught_up.acquire()
            self._followed = group.stop

    async def hear(self, events: int) -> list[float]:
        """Append `events`, every job's in turn; how long each took to its follower, in ms."""
        self._latencies_ms = []
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for number in range(events):
                due = began + number / EVENTS_A_SECOND
                await anyio.sleep(max(0.0, due - time.perf_counter()))
                tasks.start_soon(self._append, number % len(self._refs), due)
        while self._due:
            self._all_heard = anyio.Event()
            await self._all_heard.wait()
        return self._latencies_ms

    async def _append(self, number: int, due: float) -> None:
        event = new_event(PhaseStarted(phase=Phase.CODE))
        if number < self._followed:
            self._due[event.id] = due
        async with self._turns[number]:
            await self._hub.store.append(
                self._refs[number], PROJECT, [event], expected_version=self._versions[number]
            )
            self._versions[number] += 1

    async def _follow(self, number: int, caught_up: anyio.Semaphore) -> None:
        version = self._versions[number]
        async with aclosing(follow(self._hub, self._refs[number])) as entries:
            async for entry in entries:
                if isinstance(entry, JobEvent):
                    self._heard(entry.event.id)
                    if entry.event.version == version:
                        caught_up.release()

    def _heard(self, event_id: str) -> None:
        due = self._due.pop(event_id, None)
        if due is not None:
            self._latencies_ms.append((time.perf_counter() - due) * 1000)
            if not self._due:
                self._all_heard.set()
