"""Fixtures that put the loopback server in the place of E2B; import both into a `conftest.py`."""

from collections.abc import Iterator

import pytest

from tests.e2b_server.server import E2BServer


@pytest.fixture(scope="session")
def e2b_session() -> Iterator[E2BServer]:
    """The server behind `e2b_server`, which is the one to use."""
    with pytest.MonkeyPatch.context() as patch:
        # Read once, when the SDK first connects: a proxy must not get what is for loopback.
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        with E2BServer() as server:
            yield server


@pytest.fixture
def e2b_server(e2b_session: E2BServer) -> Iterator[E2BServer]:
    """A loopback server without sandboxes and faults at the start of every test."""
    yield e2b_session
    e2b_session.reset()
