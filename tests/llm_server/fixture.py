"""Fixtures that put the loopback server in the place of the providers; import both."""

from collections.abc import Iterator
from functools import cache

import httpcore2
import pytest

from tests.llm_server.server import LLMServer


@pytest.fixture(scope="session")
def llm_session() -> Iterator[LLMServer]:
    """The server behind `llm_server`, which is the one to use."""
    with pytest.MonkeyPatch.context() as patch:
        # A proxy must not get what is for loopback.
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        # Certificates are loaded once, which takes 40 ms, and not for each model.
        patch.setattr(httpcore2, "default_ssl_context", cache(httpcore2.default_ssl_context))
        with LLMServer() as server:
            yield server


@pytest.fixture
def llm_server(llm_session: LLMServer) -> Iterator[LLMServer]:
    """A loopback server with nothing in its script at the start of every test."""
    llm_session.reset()
    yield llm_session
    assert not llm_session.broken, llm_session.broken
