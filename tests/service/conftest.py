"""A whole instance per module for the tests that speak HTTP."""

from collections.abc import AsyncIterator

import httpx
import pytest

from service.settings import RunnerKind
from tests.service.instances import Running, running_instance, visitor


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
