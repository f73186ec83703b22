"""Where a benchmark runs: on embedded servers of its own, unless told otherwise."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from eventstore import Archive, EventStore, connect_postgres, connect_redis, open_log
from service.collector import settle
from service.commands.terminal import run
from service.embedded import Servers, embedded_servers
from service.errors import SettingsInvalid
from service.migrating import upgrade

T = TypeVar("T")

PARTITIONS = 8
NO_CAP = 1_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """Servers to measure, both or none. They must be empty: a benchmark fills them."""

    redis_url: str | None = None
    database_url: str | None = None
    with_peers: bool = False
    """Whether others are measured beside, where there are some (`peers/`)."""

    @contextmanager
    def servers(self) -> Iterator[Servers]:
        """The servers, running."""
        if self.redis_url and self.database_url:
            yield Servers(self.redis_url, self.database_url)
        elif self.redis_url or self.database_url:
            raise SettingsInvalid("--redis and --postgres go together: give both, or neither")
        else:
            with (
                tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
                embedded_servers(Path(folder)) as servers,
            ):
                yield servers

    def measure(self, action: Callable[[EventStore, Servers], Awaitable[T]]) -> T:
        """Run `action` on an opened, empty log, and the servers that it is on."""

        async def measured() -> T:
            async with _store(servers) as store:
                settle()  # as an instance does
                return await action(store, servers)

        with self.servers() as servers:
            return run(measured)


@asynccontextmanager
async def _store(servers: Servers) -> AsyncIterator[EventStore]:
    redis = connect_redis(servers.redis_url)
    engine = connect_postgres(servers.database_url)
    try:
        if await redis.dbsize():
            raise SettingsInvalid("the Redis to measure is not empty: give one that may be filled")
        await upgrade(engine)
        yield await open_log(redis, Archive(engine), partitions=PARTITIONS, tenant_cap=NO_CAP)
    finally:
        await redis.aclose()
        await engine.dispose()
