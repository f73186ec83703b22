"""A projector on the test's own servers, and jobs that it has folded."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import Projector
from schemas import JobRef
from schemas.events import Known
from tests.histories import build, queued, repaired_build, started
from tests.projector.writing import ONE_PER_PARTITION, write


@pytest.fixture
def projector(store: EventStore, engine: AsyncEngine) -> Projector:
    return Projector(store, engine)


@pytest.fixture
async def jobs(store: EventStore, projector: Projector) -> list[JobRef]:
    """In every partition a build, a repaired build and a job that has just started; folded."""
    histories: list[list[Known]] = [build(), repaired_build(2), [queued(), started()]]
    written = [
        await write(store, history, tenant=tenant)
        for tenant in ONE_PER_PARTITION
        for history in histories
    ]
    await projector.catch_up()
    return written
