"""Projectors, rebuilds and Postgres itself, killed at any moment: rows and checkpoint agree.

`HEADRACE_CRASHES=50 ./headrace test tests/projector/test_killed.py` is the long variant.
"""

import os
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Archive,
    EventStore,
    PostgresUnavailable,
    RedisUnavailable,
    connect_postgres,
    open_log,
)
from projector import Projector, rebuild, verify
from projector.errors import ReplayRunning
from projector.replay import SHADOW
from schemas import JobRef
from schemas.events import Known
from service.embedded import Servers
from service.migrating import upgrade
from tests.histories import TENANT, build, queued, repaired_build, started
from tests.logs import PARTITIONS
from tests.places import quick_folder
from tests.projector.child import projecting, rebuilding
from tests.projector.contents import contents, execute, folded, scalar
from tests.projector.killable import KillablePostgres
from tests.projector.processes import another_process, blocked_backend, until
from tests.projector.writing import ONE_PER_PARTITION, write

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(3600)]

CRASHES = int(os.environ.get("HEADRACE_CRASHES", "2"))
OURS = ONE_PER_PARTITION.index(TENANT)


@dataclass
class Load:
    """Writers that append job after job until they are told to stop."""

    store: EventStore
    jobs: int = 0
    stopping: bool = False
    news: anyio.Event = field(default_factory=anyio.Event)

    async def write(self, tenant: str) -> None:
        while not self.stopping:
            self.jobs += 1
            project = f"p-{self.jobs}"
            histories: list[list[Known]] = [build(), repaired_build(1), [queued(), started()]]
            history = random.choice(histories)  # noqa: S311
            while True:
                try:
                    await write(self.store, history, tenant=tenant, project=project)
                    break
                except (RedisUnavailable, PostgresUnavailable):
                    await anyio.lowlevel.checkpoint()
            self.news.set()
            self.news = anyio.Event()

    async def until_written(self, more: int) -> None:
        """Wait for so many jobs from now."""
        target = self.jobs + more
        with anyio.fail_after(60):
            while self.jobs < target:
                await self.news.wait()


async def archived(engine: AsyncEngine) -> int:
    return int(await scalar(engine, "SELECT count(*) FROM headrace.events"))


async def until_archived(engine: AsyncEngine, events: int) -> None:
    async def there() -> bool:
        return await archived(engine) >= events

    await until(there)


async def logged(store: EventStore) -> int:
    return sum([(await store.log_end(number)).seq for number in range(store.partitions)])


async def assert_agrees(engine: AsyncEngine) -> None:
    """Rows and checkpoints are those of the archive, whoever folds on."""
    assert (await verify(engine))[1] == []


# --- projectors ----------------------------------------------------------------------------------


async def test_projectors_killed_at_any_moment_leave_rows_and_checkpoint_in_agreement(
    store: EventStore, engine: AsyncEngine, servers: Servers, database_url: str
) -> None:
    load = Load(store)
    async with anyio.create_task_group() as tasks:
        for tenant in ONE_PER_PARTITION:
            tasks.start_soon(load.write, tenant)
        for _ in range(CRASHES):
            with projecting(servers.redis_url, database_url):
                await until_archived(engine, await archived(engine) + random.randint(1, 300))  # noqa: S311
            await assert_agrees(engine)
        load.stopping = True
    with projecting(servers.redis_url, database_url):
        await until_archived(engine, await logged(store))
    assert await contents(engine) == await folded(store)


async def test_a_frozen_projector_loses_its_partition_and_does_no_harm_when_it_wakes(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    servers: Servers,
    database_url: str,
) -> None:
    job = await write(store, build())
    async with another_process(servers, database_url) as other:
        with ExitStack() as stack:
            async with other.engine.begin() as holding:
                await holding.exec_driver_sql("LOCK TABLE headrace.events IN SHARE MODE")
                child = stack.enter_context(projecting(servers.redis_url, database_url, frozen_s=1))
                await blocked_backend(engine)
                child.freeze()
            # It stands in the middle of its transaction now, and holds the partition.

            async def folded_here() -> bool:
                return await projector.fold_batch(OURS) == len(build())

            await until(folded_here)
            await write(store, [started(2)], job=job.job, after=len(build()))
            assert await projector.catch_up() == 1
            before = await contents(engine)
            child.wake()
            await write(store, [queued()])
            await until_archived(engine, len(build()) + 2)
            assert child.runs()
    after = await contents(engine)
    assert after["events"][: len(before["events"])] == before["events"]
    assert after == await folded(store)


# --- rebuilds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", ["folded", "swapped"])
async def test_a_rebuild_that_is_killed_leaves_the_read_model_as_it_was(
    engine: AsyncEngine, jobs: list[JobRef], database_url: str, stop_at: str
) -> None:
    await execute(engine, "UPDATE jobs SET goal = 'the live one'")
    before = await contents(engine)
    with rebuilding(database_url, stop_at) as child:
        with pytest.raises(ReplayRunning):
            await rebuild(engine)
        child.kill()

    async def over() -> bool:
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        return bool(await scalar(engine, query) == 0)

    await until(over)
    assert await contents(engine) == before
    assert await scalar(engine, f"SELECT to_regnamespace('{SHADOW}')") is None
    assert (await rebuild(engine)).differing == ("jobs",)
    await assert_agrees(engine)


# --- Postgres ------------------------------------------------------------------------------------


@pytest.fixture
async def postgres() -> AsyncIterator[KillablePostgres]:
    """A running server of the test's own, migrated."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir=quick_folder()) as folder:
        one = KillablePostgres(Path(folder))
        await one.start()
        engine = connect_postgres(one.url)
        await upgrade(engine)
        await engine.dispose()
        yield one
        one.kill()


async def test_a_postgres_killed_at_any_moment_leaves_rows_and_checkpoint_in_agreement(
    postgres: KillablePostgres, redis: Redis, servers: Servers
) -> None:
    engine = connect_postgres(postgres.url)
    store = await open_log(redis, Archive(engine), partitions=PARTITIONS, tenant_cap=1_000_000)
    load = Load(store)
    with (
        projecting(servers.redis_url, postgres.url) as one,
        projecting(servers.redis_url, postgres.url) as two,
    ):
        async with anyio.create_task_group() as tasks:
            for tenant in ONE_PER_PARTITION:
                tasks.start_soon(load.write, tenant)
            for _ in range(CRASHES):
                await until_archived(engine, await archived(engine) + random.randint(1, 300))  # noqa: S311
                await load.until_written(random.randint(0, 5))  # noqa: S311
                postgres.kill()
                await postgres.start()
                await assert_agrees(engine)
            load.stopping = True
        await until_archived(engine, await logged(store))
        assert one.runs()
        assert two.runs()
    assert await contents(engine) == await folded(store)
    await engine.dispose()
