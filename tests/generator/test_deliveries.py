"""Deliveries: how many workers took a job in vain, and when it is given up."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from eventstore import Claim, CommandHandler, EventStore, Hub
from eventstore.keys import GROUP
from generator import ArtifactStore, GenerationService
from generator.service import MAX_DELIVERIES
from schemas import Job, JobRef, Phase, Status
from schemas.commands import (
    CompletePhase,
    RecordFailedChecks,
    RequestBuild,
    RequestCancel,
    StartJob,
    StartPhase,
)
from schemas.events import JobFailed

TENANT = "acme"
LEASE_MS = 60_000
Serve = Callable[..., GenerationService]


@pytest.fixture
def serve(handler: CommandHandler, hub: Hub, tmp_path: Path) -> Serve:
    """The simulated loop, with the limit given."""

    def make(max_deliveries: int = MAX_DELIVERIES) -> GenerationService:
        return GenerationService(
            handler,
            hub,
            ArtifactStore.in_folder(tmp_path / "artifacts"),
            runner=None,
            sandbox_runtime_factory=None,
            workspace_root=tmp_path / "workspaces",
            max_deliveries=max_deliveries,
        )

    return make


async def queued(handler: CommandHandler) -> JobRef:
    ref = JobRef(TENANT, str(uuid4()))
    await handler.handle(ref, RequestBuild(TENANT, "ann", "shop", "a list"))
    return ref


async def claimed(store: EventStore, worker: str = "w") -> Claim:
    (claim,) = await store.work.claim(
        store.partition(TENANT), worker, free_slots=1, lease_ms=LEASE_MS
    )
    return claim


async def die(store: EventStore, claim: Claim) -> None:
    """The worker ends without a word, and a lease passes."""
    keys = store.keys(TENANT)
    await store.redis.xclaim(
        keys.work(claim.work_class), GROUP, claim.worker, 0, [claim.entry_id], idle=10_000_000
    )
    await store.redis.hset(keys.meta, "opened", "0")


async def lost_again_and_again(handler: CommandHandler, times: int) -> None:
    """So many workers take the job, begin it, and end in it."""
    for _ in range(times):
        claim = await claimed(handler.store)
        job = await handler.load(claim.ref)
        if job.status is not Status.CANCELLING:
            await handler.handle(claim.ref, StartJob("w", claim.attempt), claim=claim)
        await die(handler.store, claim)


async def complete(handler: CommandHandler, claim: Claim, phase: Phase) -> None:
    await handler.handle(claim.ref, StartPhase(phase), claim=claim)
    await handler.handle(claim.ref, CompletePhase(phase, duration_ms=1), claim=claim)


async def failure(handler: CommandHandler, job: Job) -> JobFailed:
    *_, last = await handler.store.read_job(JobRef(TENANT, job.job))
    assert isinstance(last.payload, JobFailed)
    return last.payload


# --- what counts ---------------------------------------------------------------------------------


async def test_every_takeover_is_a_delivery(handler: CommandHandler) -> None:
    await queued(handler)
    seen = []
    for _ in range(4):
        claim = await claimed(handler.store)
        seen.append((claim.attempt, claim.deliveries))
        await die(handler.store, claim)
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


async def test_a_job_handed_back_was_not_delivered(handler: CommandHandler) -> None:
    await queued(handler)
    seen = []
    for _ in range(4):
        claim = await claimed(handler.store)
        seen.append((claim.attempt, claim.deliveries))
        await handler.store.work.release(claim)
    assert seen == [(1, 1), (2, 1), (3, 1), (4, 1)]


async def test_a_hand_back_takes_back_its_own_delivery_and_not_those_before(
    handler: CommandHandler,
) -> None:
    await queued(handler)
    await lost_again_and_again(handler, 2)
    third = await claimed(handler.store)
    await handler.store.work.release(third)
    assert (await claimed(handler.store)).deliveries == 3


async def test_getting_further_than_ever_forgives_the_deliveries_before(
    handler: CommandHandler,
) -> None:
    await queued(handler)
    await lost_again_and_again(handler, 2)
    third = await claimed(handler.store)
    await handler.handle(third.ref, StartJob("w", third.attempt), claim=third)
    await complete(handler, third, Phase.SCAFFOLD)
    await die(handler.store, third)
    fourth = await claimed(handler.store)
    assert (fourth.attempt, fourth.deliveries) == (4, 1)


async def test_failed_checks_are_further_than_ever_too(handler: CommandHandler) -> None:
    await queued(handler)
    await lost_again_and_again(handler, 1)
    claim = await claimed(handler.store)
    await handler.handle(claim.ref, StartJob("w", claim.attempt), claim=claim)
    for phase in (Phase.SCAFFOLD, Phase.CODE, Phase.DEPS):
        await complete(handler, claim, phase)
    await die(handler.store, claim)
    claim = await claimed(handler.store)
    await handler.handle(claim.ref, StartJob("w", claim.attempt), claim=claim)
    await handler.handle(claim.ref, StartPhase(Phase.CHECKS), claim=claim)
    await die(handler.store, claim)
    claim = await claimed(handler.store)
    assert claim.deliveries == 2
    await handler.handle(claim.ref, StartJob("w", claim.attempt), claim=claim)
    await handler.handle(claim.ref, StartPhase(Phase.CHECKS), claim=claim)
    checks = RecordFailedChecks("f-1", "pytest", 1, "red")
    await handler.handle(claim.ref, checks, claim=claim)
    await die(handler.store, claim)
    assert (await claimed(handler.store)).deliveries == 1


async def test_checks_seen_again_by_every_attempt_prove_nothing(handler: CommandHandler) -> None:
    await queued(handler)
    claim = await claimed(handler.store)
    await handler.handle(claim.ref, StartJob("w", claim.attempt), claim=claim)
    for phase in Phase:
        await complete(handler, claim, phase)
    for deliveries in (1, 2, 3):
        await die(handler.store, claim)
        claim = await claimed(handler.store)
        assert claim.deliveries == deliveries
        await handler.handle(claim.ref, StartJob("w", claim.attempt), claim=claim)
        await complete(handler, claim, Phase.CHECKS)


# --- giving up -----------------------------------------------------------------------------------


async def test_a_job_that_three_workers_were_lost_in_is_given_up_by_the_fourth(
    handler: CommandHandler, serve: Serve
) -> None:
    await queued(handler)
    await lost_again_and_again(handler, 3)
    claim = await claimed(handler.store)
    job = await serve().execute_build(claim)
    assert job.status is Status.FAILED
    told = await failure(handler, job)
    assert told.kind == "workers_lost"
    assert told.message.startswith("3 workers in a row")
    assert told.debug_id
    # It is nobody's any more, and its tenant's next job may run.
    assert not await handler.store.work.release(claim)
    assert await handler.store.work.tenants(handler.store.partition(TENANT)) == {}


async def test_a_job_that_two_workers_were_lost_in_is_built_by_the_third(
    handler: CommandHandler, serve: Serve
) -> None:
    await queued(handler)
    await lost_again_and_again(handler, 2)
    job = await serve().execute_build(await claimed(handler.store))
    assert job.status is Status.READY


async def test_a_job_that_was_handed_back_many_times_is_built(
    handler: CommandHandler, serve: Serve
) -> None:
    await queued(handler)
    for _ in range(10):
        await handler.store.work.release(await claimed(handler.store))
    job = await serve().execute_build(await claimed(handler.store))
    assert job.status is Status.READY


async def test_the_limit_is_a_setting(handler: CommandHandler, serve: Serve) -> None:
    await queued(handler)
    await lost_again_and_again(handler, 1)
    job = await serve(max_deliveries=1).execute_build(await claimed(handler.store))
    assert (await failure(handler, job)).kind == "workers_lost"


async def test_a_job_that_is_to_be_cancelled_is_cancelled_however_many_workers_were_lost(
    handler: CommandHandler, serve: Serve
) -> None:
    ref = await queued(handler)
    await lost_again_and_again(handler, 1)
    await handler.handle(ref, RequestCancel(by="ann"))
    await lost_again_and_again(handler, 3)
    job = await serve().execute_build(await claimed(handler.store))
    assert job.status is Status.CANCELLED
