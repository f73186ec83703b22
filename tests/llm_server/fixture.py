"""Fixtures that put the loopback server in the place of the providers; import both."""

from collections.abc import Iterator

import pytest

from tests.llm_server.server import LLMServer


@pytest.fixture(scope="session")
def llm_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLMServer]:
    """The server behind `llm_server`, which is the one to use."""
    with pytest.MonkeyPatch.context() as patch:
        # A proxy must not get what is for loopback.
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        # Nor do certificates matter there: to load them takes 40 ms for each model.
        patch.delenv("SSL_CERT_FILE", raising=False)
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("no certificates")))
        with LLMServer() as server:
            yield server


@pytest.fixture
def llm_server(llm_session: LLMServer) -> Iterator[LLMServer]:
    """A loopback server with nothing in its script at the start of every test."""
    llm_session.reset()
    yield llm_session
    assert not llm_session.broken, llm_session.broken
