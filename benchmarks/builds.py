"""Jobs and whole builds as the log holds them, for benchmarks that need a log with something in it.

The tenants are so many that every partition has some, as in an installation that is used.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import anyio
from uuid6 import uuid7

from benchmarks.rows import Say
from eventstore import EventStore
from schemas import JobRef, NewEvent, Phase
from schemas.events import (
    JobQueued,
    JobReady,
    JobStarted,
    Known,
    PhaseCompleted,
    PhaseStarted,
    SandboxCreated,
    build_version,
)

TENANTS = [f"tenant-{number}" for number in range(16)]
PROJECT = "p"
EVENTS_A_BUILD = 12

_MANIFEST = "6f1ed002ab5595859014ebf0951522d9e3d7cf9a5b7b0c1d2e3f405162738495"


def new_event(payload: Known) -> NewEvent:
    """An event of now."""
    return NewEvent(id=str(uuid7()), time=datetime.now(UTC), payload=payload)


async def queue_job(store: EventStore, tenant: str) -> JobRef:
    """A new job, at version 1."""
    ref = JobRef(tenant, str(uuid7()))
    goal = "a todo list for two people, with a done button"
    queued = JobQueued(tenant=tenant, user_id="u", project_id=PROJECT, goal=goal)
    await store.append(ref, PROJECT, [new_event(queued)], expected_version=0)
    return ref


async def queue_jobs(store: EventStore, count: int) -> list[JobRef]:
    """New jobs, every tenant's in turn."""
    refs: list[JobRef] = []

    async def queue(tenant: str, jobs: int) -> None:
        refs.extend([await queue_job(store, tenant) for _ in range(jobs)])

    async with anyio.create_task_group() as tasks:
        for number, tenant in enumerate(TENANTS):
            tasks.start_soon(queue, tenant, len(range(number, count, len(TENANTS))))
    return refs


async def fill(store: EventStore, events: int, say: Say) -> None:
    """Append whole builds, each of `EVENTS_A_BUILD`, until the log holds `events` or a few more."""
    began_with = await held(store)
    missing = max(0, events - began_with)
    appended = began_with

    async def build_for(tenant: str) -> None:
        nonlocal appended
        number = await store.last_build_number(tenant, PROJECT)
        for _ in range(0, missing, EVENTS_A_BUILD * len(TENANTS)):
            number += 1
            ref = await queue_job(store, tenant)
            await store.append(
                ref,
                PROJECT,
                [new_event(payload) for payload in from_start_to_ready(number)],
                expected_version=1,
                build_number=number,
            )
            appended += EVENTS_A_BUILD
            say(f"filling the log: {appended:,} of {events:,} events")

    async with anyio.create_task_group() as tasks:
        for tenant in TENANTS:
            tasks.start_soon(build_for, tenant)


async def held(store: EventStore) -> int:
    """How many events the log holds."""
    return sum([(await store.log_end(number)).seq for number in range(store.partitions)])


def from_start_to_ready(number: int) -> Sequence[Known]:
    """What happens to a queued job until it is build `number`."""
    phases: list[Known] = []
    for phase in Phase:
        phases += [
            PhaseStarted(phase=phase),
            PhaseCompleted(
                phase=phase,
                duration_ms=1_200,
                evidence={"files": 7, "tests": "12 passed"},
                manifest=_MANIFEST,
                input_tokens=1_200,
                output_tokens=3_000,
                cost_usd=0.05,
            ),
        ]
    sandbox = SandboxCreated(
        sandbox_id="sb-0123456789abcdef",
        provider="local",
        ends_at=datetime.now(UTC) + timedelta(hours=1),
    )
    ready = JobReady(
        build_number=number,
        build_version=build_version(number),
        sandbox_id=sandbox.sandbox_id,
        preview_url="http://127.0.0.1:40123/",
        manifest=_MANIFEST,
    )
    return [JobStarted(attempt=1, worker="worker-1"), *phases[:5], sandbox, *phases[5:], ready]
