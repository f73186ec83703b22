"""Guarantee 1 when the server dies: what was acknowledged is there, once, in order, and whole.

`HEADRACE_CRASHES=50 ./headrace test tests/eventstore/test_crash.py` is the long variant.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

import anyio
import pytest

from eventstore import Archive, EventStore, RedisUnavailable, connect_redis, open_log
from schemas import JobRef, NewEvent, Phase
from schemas.events import JobQueued, Known, PhaseStarted
from tests.eventstore.killable import KillableServer
from tests.logs import PARTITIONS

pytestmark = pytest.mark.both_servers

CRASHES = int(os.environ.get("HEADRACE_CRASHES", "4"))
WRITERS = 8


@dataclass
class Load:
    """Writers that append to a job each, and what was acknowledged to them."""

    store: EventStore
    acknowledged: dict[JobRef, list[str]] = field(default_factory=dict)
    count: int = 0
    stopping: bool = False
    news: anyio.Event = field(default_factory=anyio.Event)

    async def write(self, tenant: str) -> None:
        ref = JobRef(tenant, str(uuid4()))
        ids = self.acknowledged[ref] = []
        await self._append(ref, [_event(_queued(tenant))], ids)
        while not self.stopping:
            batch = [_event(PhaseStarted(phase=Phase.CODE)) for _ in range(random.randint(1, 3))]  # noqa: S311
            await self._append(ref, batch, ids)

    async def until_acknowledged(self, more: int) -> None:
        """Wait for `more` acknowledgements from now."""
        target = self.count + more
        with anyio.fail_after(60):
            while self.count < target:
                await self.news.wait()

    async def _append(self, ref: JobRef, events: Sequence[NewEvent], ids: list[str]) -> None:
        """Append, and again with the same events for as long as the server is away."""
        while True:
            try:
                await self.store.append(ref, "p", events, expected_version=len(ids))
            except RedisUnavailable:
                await anyio.lowlevel.checkpoint()
                continue
            ids += [event.id for event in events]
            self.count += 1
            self.news.set()
            self.news = anyio.Event()
            return


def _event(payload: Known) -> NewEvent:
    return NewEvent(id=str(uuid4()), time=datetime.now(UTC), payload=payload)


def _queued(tenant: str) -> JobQueued:
    return JobQueued(tenant=tenant, user_id="u", project_id="p", goal="a list")


@pytest.mark.timeout(600)
async def test_every_acknowledged_append_survives_a_server_killed_at_any_moment(
    server: KillableServer, archive: Archive
) -> None:
    redis = connect_redis(server.url)
    store = await open_log(redis, archive, partitions=PARTITIONS)
    load = Load(store)
    async with anyio.create_task_group() as tasks:
        for number in range(WRITERS):
            tasks.start_soon(load.write, f"tenant-{number}")
        for _ in range(CRASHES):
            await load.until_acknowledged(random.randint(5, 60))  # noqa: S311
            server.kill()
            await server.start()
        await load.until_acknowledged(20)
        load.stopping = True

    found: dict[JobRef, list[str]] = {}
    for partition in range(PARTITIONS):
        position, seqs = None, []
        while entries := await store.read_log(partition, position):
            position = entries[-1].position
            for entry in entries:
                seqs.append(entry.position.seq)
                ids = found.setdefault(JobRef(entry.event.tenant, entry.event.job), [])
                ids.append(entry.event.id)
                assert entry.event.version == len(ids)
        assert seqs == list(range(1, len(seqs) + 1))
    assert found == load.acknowledged
    for ref, ids in load.acknowledged.items():
        assert [event.id for event in await store.read_job(ref)] == ids
    await redis.aclose()
