"""A projector that runs: woken by bells, and still there after its database was not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from eventstore import EventStore, Hub, PostgresUnavailable, connect_postgres
from projector import Projector, job_by_id
from schemas import JobRef, Status
from service.embedded import DATABASE, Servers
from tests.histories import TENANT, queued, started
from tests.projector.contents import READ_MODEL, contents, execute, folded
from tests.projector.processes import until
from tests.projector.writing import ONE_PER_PARTITION, write

pytestmark = pytest.mark.anyio


async def until_folded(engine: AsyncEngine, job: JobRef, status: Status) -> None:
    """Return when the job's row says `status`."""

    async def there() -> bool:
        async with engine.connect() as connection:
            row = await job_by_id(connection, job.tenant, job.job)
        return row is not None and row.status is status

    await until(there)


@asynccontextmanager
async def closed_database(servers: Servers, engine: AsyncEngine) -> AsyncIterator[None]:
    """The test's database ends all connections and takes none, as while its server restarts."""
    admin = connect_postgres(servers.database_url.replace(f"/{DATABASE}?", "/postgres?"))
    name = engine.url.database
    await execute(
        admin,
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    try:
        yield
    finally:
        await execute(admin, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await admin.dispose()


async def test_a_running_projector_follows_every_partition(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    hub = Hub(store, redis)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        tasks.start_soon(projector.run, hub)
        for tenant in ONE_PER_PARTITION:
            job = await write(store, [queued()], tenant=tenant)
            await until_folded(engine, job, Status.QUEUED)
            await write(store, [started()], tenant=tenant, job=job.job, after=1)
            await until_folded(engine, job, Status.STARTING)
        tasks.cancel_scope.cancel()
    assert await contents(engine) == await folded(store)


async def test_a_running_projector_notices_a_postgres_that_was_set_back_without_any_bell(
    store: EventStore,
    engine: AsyncEngine,
    projector: Projector,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("projector.projector.LOOK_AGAIN_S", 0.05)
    hub = Hub(store, redis)
    job = await write(store, [queued()])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        tasks.start_soon(projector.run, hub)
        await until_folded(engine, job, Status.QUEUED)
        await execute(engine, f"TRUNCATE {READ_MODEL}, headrace.events")
        await until_folded(engine, job, Status.QUEUED)
        tasks.cancel_scope.cancel()
    assert await contents(engine) == await folded(store)


async def test_a_database_that_takes_no_connections_is_told_as_unavailable(
    store: EventStore, engine: AsyncEngine, projector: Projector, servers: Servers
) -> None:
    await write(store, [queued()])
    async with closed_database(servers, engine):
        with pytest.raises(PostgresUnavailable):
            await projector.fold_batch(store.partition(TENANT))
    assert await projector.fold_batch(store.partition(TENANT)) == 1


async def test_a_running_projector_outlives_a_database_that_goes_away_for_a_while(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis, servers: Servers
) -> None:
    hub = Hub(store, redis)
    job = await write(store, [queued()])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        with capture_logs() as logs:

            async def waiting() -> bool:
                return any(entry["event"] == "projector_waits" for entry in logs)

            async with closed_database(servers, engine):
                tasks.start_soon(projector.run, hub)
                await until(waiting)
        await until_folded(engine, job, Status.QUEUED)
        tasks.cancel_scope.cancel()
