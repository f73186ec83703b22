"""What tests of the service share: a whole instance per module, and a home with builds."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
import pytest

from service.client import Client
from service.settings import RunnerKind
from tests.service.instances import PATIENCE_S, Running, running_instance, visitor

BUILDS = 3


@pytest.fixture(scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Running]:
    """An instance with the simulated loop: every transition, no code, no sandbox."""
    async with running_instance(tmp_path_factory.mktemp("home"), RunnerKind.NONE) as started:
        yield started


@pytest.fixture
async def client(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks to the instance with its local key."""
    async with visitor(running.instance.url, running.instance.key) as made:
        yield made


@pytest.fixture(scope="session")
def built_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home on which the builds `list 0` to `list 2` of project p were made; nothing runs on it.

    To be copied: whoever starts servers on it makes a new epoch of its log.
    """
    home = tmp_path_factory.mktemp("built")
    anyio.run(_make_builds, home)
    return home


async def _make_builds(home: Path) -> None:
    async with (
        running_instance(home, RunnerKind.NONE) as running,
        Client(running.instance.url, running.instance.key) as client,
    ):
        for number in range(BUILDS):
            accepted = await client.submit(f"list {number}", project="p")
            async for _ in client.follow(accepted["job_id"]):
                pass
        with anyio.fail_after(PATIENCE_S):
            while len((await client.jobs(status="ready"))["jobs"]) < BUILDS:
                await anyio.lowlevel.checkpoint()
