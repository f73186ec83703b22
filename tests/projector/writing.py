"""Puts whole histories into the log, past `decide`: the projector must not care who wrote them."""

from collections.abc import Sequence
from typing import Any

from uuid6 import uuid7

from eventstore import EventStore
from schemas import JobRef, Position, RecordedEvent
from schemas.envelope import entry_fields
from schemas.events import JobQueued, JobReady, Known
from tests.histories import PROJECT, TENANT, new, recorded

ONE_PER_PARTITION = ("initech", "tenant-0", "acme", "tenant-1")
"""Tenants that live in partitions 0, 1, 2 and 3 of four."""


async def write(
    store: EventStore,
    payloads: Sequence[Known],
    *,
    tenant: str = TENANT,
    project: str = PROJECT,
    job: str | None = None,
    after: int = 0,
) -> JobRef:
    """Append `payloads` as versions `after` + 1, … of a job, a new one unless `job` names it.

    Whatever tenant and project the payloads were made with, these are what they say.
    """
    ref = JobRef(tenant, job or str(uuid7()))
    numbers = [payload.build_number for payload in payloads if isinstance(payload, JobReady)]
    await store.append(
        ref,
        project,
        new([_of(payload, tenant, project) for payload in payloads], job=ref.job, after=after),
        expected_version=after,
        build_number=numbers[0] if numbers else None,
    )
    return ref


def _of(payload: Known, tenant: str, project: str) -> Known:
    if not isinstance(payload, JobQueued):
        return payload
    return payload.model_copy(update={"tenant": tenant, "project_id": project})


async def forge(
    store: EventStore,
    payloads: Sequence[Known],
    *,
    tenant: str = TENANT,
    project: str = PROJECT,
    job: str | None = None,
    after: int = 0,
) -> JobRef:
    """The same past the log's own checks, as only a defect or a person with `redis-cli` does it.

    Any version may follow any other, and any build number.
    """
    ref = JobRef(tenant, job or str(uuid7()))
    today = [_of(payload, tenant, project) for payload in payloads]
    for event in recorded(today, job=ref.job, tenant=tenant, project=project, after=after):
        await forge_event(store, event)
    return ref


async def forge_event(store: EventStore, event: RecordedEvent) -> None:
    """Put this into the log as it is."""
    partition, keys = store.partition(event.tenant), store.keys(event.tenant)
    end = await store.log_end(partition)
    at = Position(partition, end.epoch, end.seq + 1)
    fields: dict[Any, Any] = {**entry_fields(event, at)}
    async with store.redis.pipeline() as pipe:
        pipe.xadd(keys.log, fields, at.entry_id)
        pipe.hset(keys.meta, "seq", str(at.seq))
        await pipe.execute()
