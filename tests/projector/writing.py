"""Puts whole histories into the log, past `decide`: the projector must not care who wrote them."""

from collections.abc import Sequence

from uuid6 import uuid7

from eventstore import EventStore
from schemas import JobRef
from schemas.events import JobQueued, JobReady, Known
from tests.histories import PROJECT, TENANT, new

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
