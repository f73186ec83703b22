"""Real parts for every test: the embedded Valkey and PostgreSQL, started once, emptied for each."""

import asyncio
import gc
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path

import anyio
import pytest
import structlog
from hypothesis import settings
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Archive,
    CommandHandler,
    EventStore,
    Hub,
    connect_postgres,
    connect_redis,
)
from service.collector import settle
from service.embedded import Servers, embedded_servers
from service.migrating import upgrade
from tests.databases import NewDatabase, new_databases
from tests.logs import new_log
from tests.places import quick_folder

# As many examples of a property as there is time for each time; HEADRACE_EXAMPLES asks for more.
settings.register_profile("suite", max_examples=int(os.environ.get("HEADRACE_EXAMPLES", "40")))
settings.load_profile("suite")

# What is imported and collected is no garbage: to look for it takes a third of the time of that.
gc.disable()

# As the service has it: a traceback with all that is in it, drawn in colours, takes a second.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

_LONG = (
    "service/test_up",
    "test_bench",
    "test_chaos",
    "service/test_demo",
    "service/test_log_commands",
    "service/test_replay_commands",
    "service/test_erasing",
    "service/test_doctor",
    "projector/test_killed",
    "projector/test_queries_plans",
    "service/test_embedded",
    "eventstore/test_failover",
    "eventstore/test_machine",
    "eventstore/test_append",
    "eventstore/test_admission",
    "generator/test_template_runner",
    "generator/test_sandbox_contract",
    "generator/local/test_escapes",
)
"""The files that take longest, relative to this folder. What begins last must be short: the other
processes wait for it."""


def pytest_configure() -> None:
    """Temporary files are in memory, too: to copy a home of 50 MB takes a file system a second."""
    if place := quick_folder():
        os.environ["TMPDIR"] = tempfile.tempdir = place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ranks = {here / f"{name}.py": rank for rank, name in enumerate(_LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    gc.enable()
    settle()  # as an instance does


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def embedded() -> Iterator[Servers]:
    """Both servers, started once."""
    with (
        tempfile.TemporaryDirectory(prefix="hr-", dir=quick_folder()) as home,
        embedded_servers(Path(home)) as running,
    ):
        asyncio.run(_migrate(running.database_url))
        yield running


@pytest.fixture(scope="session")
def servers(embedded: Servers) -> Servers:
    """The servers that the test is given."""
    return embedded


async def _migrate(url: str) -> None:
    engine = connect_postgres(url)
    await upgrade(engine)
    await engine.dispose()


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    """An empty Redis."""
    client = connect_redis(servers.redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def new_database(embedded: Servers) -> Iterator[NewDatabase]:
    with new_databases(embedded.database_url) as made:
        yield made


@pytest.fixture
def database_url(new_database: NewDatabase) -> str:
    """A migrated database of the test's own, as new."""
    return new_database.renew()


@cache
def _engine(url: str) -> AsyncEngine:
    """One for all tests: it knows by heart how the statements of the tests before were compiled."""
    return connect_postgres(url)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine without connections, and none is left of it."""
    made = _engine(database_url)
    yield made
    await made.dispose()


@pytest.fixture
def archive(engine: AsyncEngine) -> Archive:
    return Archive(engine)


@pytest.fixture
async def store(redis: Redis, archive: Archive, new_database: NewDatabase) -> EventStore:
    """An opened, empty log."""
    return await new_log(redis, archive, new_database.execute, tenant_cap=1_000)


@pytest.fixture
def handler(store: EventStore) -> CommandHandler:
    return CommandHandler(store)


@pytest.fixture
async def hub(handler: CommandHandler, servers: Servers) -> AsyncIterator[Hub]:
    bells = connect_redis(servers.redis_url)
    listening = Hub(handler.store, bells)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listening.run)
        yield listening
        tasks.cancel_scope.cancel()
    await bells.aclose()
