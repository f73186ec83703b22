"""Stand-ins for other processes: connections and an event loop of their own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import Archive, EventStore, connect_postgres, connect_redis, open_log
from projector import Projector
from projector.shadow import OnProgress
from service.embedded import Servers
from tests.logs import PARTITIONS
from tests.projector.contents import scalar

T = TypeVar("T")

PATIENCE_S = 30.0
"""How long to wait for what must come. Only a broken build ever waits so long."""


@dataclass(frozen=True, slots=True)
class Process:
    """Another process with a projector in it."""

    store: EventStore
    engine: AsyncEngine
    projector: Projector


@asynccontextmanager
async def another_process(servers: Servers, database_url: str) -> AsyncIterator[Process]:
    """Opens everything anew, as a process that has just started does."""
    engine, redis = connect_postgres(database_url), connect_redis(servers.redis_url)
    try:
        store = await open_log(redis, Archive(engine), partitions=PARTITIONS)
        yield Process(store, engine, Projector(store, engine))
    finally:
        await redis.aclose()
        await engine.dispose()


def beside(run: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run this to its end in a thread of its own, while the caller's event loop stands still."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run()).result(PATIENCE_S)


def at_the_first_job(run: Callable[[], Coroutine[Any, Any, object]]) -> OnProgress:
    """Run this beside the replay, once, while the replay stands in the middle of its work."""
    unused = [run]

    def tell(seen: int, total: int) -> None:
        if unused:
            beside(unused.pop())

    return tell


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return as soon as this holds: for what another process does and tells nobody of."""
    with anyio.fail_after(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - it is in another process
            await anyio.sleep(0.005)


async def blocked_backend(engine: AsyncEngine, count: int = 1) -> int:
    """The pid of a backend of this database that waits for a lock; returns when `count` do."""
    found: list[int] = []

    async def waits() -> bool:
        query = (
            "SELECT array_agg(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock'"
        )
        found[:] = await scalar(engine, query) or []
        return len(found) >= count

    await until(waits)
    return found[0]
