"""A store for tests that are not async: hypothesis calls the rules of a machine one by one."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import text

from eventstore import Archive, EventStore, connect_postgres, connect_redis, open_log
from eventstore.keys import Keys
from projector.tables import metadata

PARTITIONS = 2
TENANT_CAP = 2


class World:
    """Servers, a store on them, and the event loop that it lives in."""

    def __init__(
        self, run: Callable[[Coroutine[Any, Any, Any]], Any], redis_url: str, database_url: str
    ) -> None:
        self.run = run
        self.redis = connect_redis(redis_url)
        self.engine = connect_postgres(database_url)
        self.archive = Archive(self.engine)
        self.store = run(self._open())

    async def _open(self) -> EventStore:
        await self.redis.flushall()  # of what the test before has left
        return await open_log(
            self.redis, self.archive, partitions=PARTITIONS, tenant_cap=TENANT_CAP
        )

    async def empty(self) -> None:
        """Begin anew: nothing in either server but a log without events."""
        await self.redis.flushall()
        async with self.engine.begin() as connection:
            for table in ("log_epochs", "log_partitions", "events", "last_builds"):
                await connection.execute(text(f"DELETE FROM headrace.{table}"))
            for table in reversed(metadata.sorted_tables):
                await connection.execute(text(f"DELETE FROM {table.name}"))
        await self.store.verification.verify_again()

    async def become_another_server(self) -> None:
        """What both servers hold was written beside another server process than this one."""
        for partition in range(PARTITIONS):
            await self.redis.hset(Keys(partition).meta, "run", "before")
        async with self.engine.begin() as connection:
            await connection.execute(text("UPDATE headrace.log_epochs SET run = ''"))

    async def close(self) -> None:
        await self.redis.aclose()
        await self.engine.dispose()


@contextmanager
def opened(redis_url: str, database_url: str) -> Iterator[World]:
    """A world on these servers while the block runs."""
    with asyncio.Runner() as runner:
        one = World(runner.run, redis_url, database_url)
        yield one
        runner.run(one.close())
