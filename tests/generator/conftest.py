"""Fixtures for the tests of the generator."""

from pathlib import Path

import pytest

from eventstore import CommandHandler, Hub
from tests.e2b_server.fixture import e2b_server, e2b_session
from tests.generator.builds import Builds
from tests.generator.local.conftest import isolation_is_possible
from tests.llm_server.fixture import llm_server, llm_session

__all__ = ["e2b_server", "e2b_session", "isolation_is_possible", "llm_server", "llm_session"]


@pytest.fixture
def builds(handler: CommandHandler, hub: Hub, tmp_path: Path) -> Builds:
    return Builds(handler, hub, tmp_path)
