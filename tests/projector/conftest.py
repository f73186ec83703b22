"""A projector on the test's own servers."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import Projector


@pytest.fixture
def projector(store: EventStore, engine: AsyncEngine) -> Projector:
    return Projector(store, engine)
