"""The reaper, on the real log: what it ends, what it leaves alone, what it says."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventstore import Claim, CommandHandler, EventStoreError, RedisUnavailable
from generator import Reaper
from generator.reaper import judge
from generator.sandbox import SandboxInfo
from schemas import Job, JobRef, Phase, Preview
from schemas.commands import (
    ConfirmCancel,
    ExpirePreview,
    FailJob,
    PausePreview,
    RecordSandbox,
    RequestCancel,
    RequestPreview,
    ResumePreview,
    StartJob,
    StartPhase,
)
from schemas.events import Known, PreviewExpired
from tests.generator.builds import TENANT, Builds, previews
from tests.generator.doubles import ScriptedRunner, ScriptedRuntime, ScriptedSandbox
from tests.histories import NOON, SITUATIONS, state_after

pytestmark = pytest.mark.anyio

GRACE = timedelta(minutes=5)
OLD = timedelta(hours=1)


class Reaped:
    """A reaper over `runtime`, which looks at the previews of `refs`; its clock is the test's."""

    def __init__(self, builds: Builds, runtime: ScriptedRuntime, **options: Any) -> None:
        self.builds = builds
        self.runtime = runtime
        self.refs: list[JobRef] = []
        self.now = datetime.now(UTC)
        handler = CommandHandler(builds.handler.store, clock=lambda: self.now)
        self.reaper = Reaper(handler, lambda: runtime, self._previews, **options)

    async def _previews(self, limit: int) -> Sequence[JobRef]:
        return self.refs[:limit]

    def made_for(self, job: str, *, age: timedelta = OLD, **metadata: str) -> ScriptedSandbox:
        """A sandbox of that age with the metadata that a worker gives it."""
        lineage = self.builds.handler.store.lineage
        made = self.runtime.make(
            {"headrace": lineage, "tenant": TENANT, "job": job, "attempt": "1", **metadata}
        )
        made.started_at = self.now - age
        return made

    async def recorded(self) -> tuple[Claim, ScriptedSandbox]:
        """A job under way in a sandbox that the log knows."""
        claim = await self.builds.claimed()
        made = self.made_for(claim.ref.job)
        await self.builds.handler.handle(
            claim.ref,
            StartJob(claim.worker, 1),
            StartPhase(Phase.SCAFFOLD),
            RecordSandbox(made.sandbox_id, "scripted", self.now + OLD),
            claim=claim,
        )
        return claim, made

    async def ready(self) -> tuple[JobRef, str]:
        """A build whose preview runs; the id of its sandbox."""
        service, claim = (
            self.builds.service(ScriptedRunner(), self.runtime),
            await self.builds.claimed(),
        )
        async with previews(self.runtime):
            job = await service.execute_build(claim)
        assert job.sandbox_id is not None
        self.refs.append(claim.ref)
        self.now = datetime.now(UTC)
        return claim.ref, job.sandbox_id

    async def preview(self, ref: JobRef) -> Preview | None:
        return (await self.builds.handler.load(ref)).preview


@pytest.fixture
def reaped(builds: Builds) -> Reaped:
    return Reaped(builds, ScriptedRuntime())


# --- the judgement -------------------------------------------------------------------------------


def info(sandbox_id: str = "sb-1", *, age: timedelta = OLD) -> SandboxInfo:
    return SandboxInfo(sandbox_id, {}, started_at=NOON - age, ends_at=NOON + OLD)


def job_in(situation: str) -> Job | None:
    history: list[Known] = list(SITUATIONS[situation])
    return state_after(history)


WITH_SANDBOX = {"checks", "checks done", "checks failed", "taken over"}
PREVIEW_LIVES = {"ready", "ready, waking", "ready, paused", "ready, simulated"}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_sandbox_is_needed_by_the_job_or_preview_that_the_log_has_in_it(situation: str) -> None:
    job = job_in(situation)
    needed = situation in WITH_SANDBOX | PREVIEW_LIVES - {"ready, simulated"}
    assert judge(info(), job, now=NOON, grace=GRACE).needed is needed
    assert not judge(info("sb-other"), job, now=NOON, grace=GRACE).needed


@pytest.mark.parametrize("situation", SITUATIONS)
def test_one_made_just_now_is_spared_while_a_worker_may_have_yet_to_record_it(
    situation: str,
) -> None:
    job = job_in(situation)
    found = judge(info("sb-new", age=timedelta(seconds=1)), job, now=NOON, grace=GRACE)
    assert found.needed is (job is None or not job.is_settled)


# --- ending --------------------------------------------------------------------------------------


async def test_a_sandbox_of_a_job_that_never_was_is_ended_after_the_grace_period(
    reaped: Reaped,
) -> None:
    old = reaped.made_for("lost-job")
    young = reaped.made_for("new-job", age=timedelta(seconds=10))
    done = await reaped.reaper.reap()
    assert done.ended == 1
    assert list(reaped.runtime.living) == [young.sandbox_id]
    assert old.sandbox_id not in reaped.runtime.living
    reaped.now += GRACE
    await reaped.reaper.reap()
    assert not reaped.runtime.living


async def test_a_job_keeps_the_sandbox_that_it_recorded_and_loses_any_other(
    reaped: Reaped,
) -> None:
    claim, recorded = await reaped.recorded()
    reaped.made_for(claim.ref.job, attempt="2")
    await reaped.reaper.reap()
    assert list(reaped.runtime.living) == [recorded.sandbox_id]


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_what_a_job_left_behind_is_ended(reaped: Reaped, end: str) -> None:
    claim, _ = await reaped.recorded()
    if end == "failed":
        ends = [FailJob("runner", "no", "dbg-1")]
        await reaped.builds.handler.handle(claim.ref, *ends)
    else:
        await reaped.builds.handler.handle(claim.ref, RequestCancel("ann"))
        await reaped.builds.handler.handle(claim.ref, ConfirmCancel(), claim=claim)
    await reaped.reaper.reap()
    assert not reaped.runtime.living


async def test_sandboxes_of_another_installation_are_left_alone(reaped: Reaped) -> None:
    other = reaped.made_for("lost-job", headrace="another-log")
    foreign = reaped.runtime.make({"app": "somebody-elses"})
    foreign.started_at -= OLD
    done = await reaped.reaper.reap()
    assert done.ended == 0
    assert set(reaped.runtime.living) == {other.sandbox_id, foreign.sandbox_id}


async def test_metadata_that_no_job_can_have_is_nobodys(reaped: Reaped) -> None:
    reaped.made_for("Not An Id")
    await reaped.reaper.reap()
    assert not reaped.runtime.living


async def test_nothing_is_ended_while_the_log_does_not_answer(
    reaped: Reaped, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(ref: JobRef, **_: Any) -> Any:
        raise RedisUnavailable("away")

    reaped.made_for("lost-job")
    monkeypatch.setattr(reaped.builds.handler.store, "read_job", away)
    with pytest.raises(EventStoreError):
        await reaped.reaper.reap()
    assert len(reaped.runtime.living) == 1


async def test_a_kill_that_is_not_confirmed_is_told_and_tried_again(reaped: Reaped) -> None:
    reaped.made_for("lost-job")
    reaped.runtime.kill_fails = True
    done = await reaped.reaper.reap()
    assert (done.ended, done.left) == (0, 1)
    reaped.runtime.kill_fails = False
    assert (await reaped.reaper.reap()).ended == 1


async def test_a_round_ends_no_more_than_it_may(
    reaped: Reaped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.reaper.MOST_A_ROUND", 2)
    for number in range(3):
        reaped.made_for(f"lost-{number}")
    assert (await reaped.reaper.reap()).ended == 2
    assert (await reaped.reaper.reap()).ended == 1


# --- previews ------------------------------------------------------------------------------------


async def test_a_preview_that_runs_is_left_alone(reaped: Reaped) -> None:
    ref, sandbox_id = await reaped.ready()
    await reaped.reaper.reap()
    assert await reaped.preview(ref) is Preview.RUNNING
    assert sandbox_id in reaped.runtime.living


async def test_a_preview_whose_sandbox_has_ended_is_told_as_expired_once(reaped: Reaped) -> None:
    ref, sandbox_id = await reaped.ready()
    await reaped.runtime.kill(sandbox_id)
    assert (await reaped.reaper.reap()).expired == 1
    assert (await reaped.reaper.reap()).expired == 0
    job = await reaped.builds.handler.load(ref)
    assert (job.preview, job.preview_url) == (Preview.EXPIRED, None)


async def test_what_one_machine_does_not_see_may_live_on_another(builds: Builds) -> None:
    reaped = Reaped(builds, ScriptedRuntime(), sees_all=False)
    ref, sandbox_id = await reaped.ready()
    await reaped.runtime.kill(sandbox_id)
    assert (await reaped.reaper.reap()).expired == 0
    reaped.now += timedelta(hours=2)
    assert (await reaped.reaper.reap()).expired == 1
    assert await reaped.preview(ref) is Preview.EXPIRED


async def test_a_preview_past_its_end_is_ended_and_told(reaped: Reaped) -> None:
    ref, _ = await reaped.ready()
    reaped.now += timedelta(hours=2)
    done = await reaped.reaper.reap()
    assert (done.ended, done.expired) == (1, 1)
    assert not reaped.runtime.living
    events = await reaped.builds.handler.store.read_job(ref)
    assert events[-1].payload == PreviewExpired(reason="its time was over")


async def test_a_preview_that_somebody_ended_loses_its_sandbox_at_once(reaped: Reaped) -> None:
    ref, _ = await reaped.ready()
    await reaped.builds.handler.handle(ref, ExpirePreview("ended by ann"))
    await reaped.reaper.reap()
    assert not reaped.runtime.living


async def test_a_preview_resumed_after_the_list_was_made_is_not_taken_for_gone(
    reaped: Reaped,
) -> None:
    ref, _ = await reaped.ready()
    until = reaped.now + timedelta(hours=2)

    class Late(ScriptedRuntime):
        async def list(self, metadata):  # type: ignore[no-untyped-def]
            listed = await super().list(metadata)
            reaped.now += timedelta(seconds=1)
            handler = CommandHandler(reaped.builds.handler.store, clock=lambda: reaped.now)
            await handler.handle(ref, RequestPreview("ann", until))
            await handler.handle(ref, ResumePreview("sb-elsewhere", "http://x.example", until))
            return listed

    late = Late(living=reaped.runtime.living)
    handler = CommandHandler(reaped.builds.handler.store, clock=lambda: reaped.now)
    await Reaper(handler, lambda: late, reaped._previews).reap()
    assert await reaped.preview(ref) is Preview.RUNNING


async def test_a_request_that_stands_in_no_queue_is_given_up_with_the_reason(
    reaped: Reaped,
) -> None:
    ref, _ = await reaped.ready()
    store, until = reaped.builds.handler.store, reaped.now + timedelta(hours=2)
    await reaped.builds.handler.handle(ref, RequestPreview("ann", until))
    await reaped.reaper.reap()
    assert await reaped.preview(ref) is Preview.WAKING
    await store.redis.hdel(store.keys(ref.tenant).runs, ref.job)
    await reaped.reaper.reap()
    assert await reaped.preview(ref) is Preview.EXPIRED


async def test_previews_are_paused_at_their_end_where_they_are_to_be_kept(builds: Builds) -> None:
    reaped = Reaped(builds, ScriptedRuntime(), keep_paused_s=86_400)
    ref, sandbox_id = await reaped.ready()
    assert (await reaped.reaper.reap()).paused == 0
    reaped.now += timedelta(minutes=59, seconds=30)
    assert (await reaped.reaper.reap()).paused == 1
    assert reaped.runtime.paused == {sandbox_id}
    job = await builds.handler.load(ref)
    assert (job.preview, job.sandbox_ends_at) == (Preview.PAUSED, reaped.now + timedelta(days=1))
    reaped.now += timedelta(hours=23)
    assert (await reaped.reaper.reap()).expired == 0
    reaped.now += timedelta(hours=2)
    done = await reaped.reaper.reap()
    assert (done.ended, done.expired) == (1, 1)
    assert not reaped.runtime.living


async def test_the_provider_follows_the_log_where_a_pause_was_left_half_done(
    reaped: Reaped,
) -> None:
    ref, sandbox_id = await reaped.ready()
    await reaped.runtime.pause(sandbox_id)
    await reaped.reaper.reap()
    assert not reaped.runtime.paused
    pause = PausePreview(kept_until=reaped.now + timedelta(days=1))
    await reaped.builds.handler.handle(ref, pause)
    await reaped.reaper.reap()
    assert reaped.runtime.paused == {sandbox_id}


async def test_it_goes_on_after_a_round_that_failed(
    reaped: Reaped, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anyio

    ended = anyio.Event()
    monkeypatch.setattr("generator.reaper.EVERY_S", 0.01)
    reaped.made_for("lost-job")
    listed, kill = reaped.runtime.list, reaped.runtime.kill
    faults: list[Exception] = [ZeroDivisionError("a bug"), RedisUnavailable("away")]

    async def list_(metadata: Any) -> Any:
        if faults:
            raise faults.pop()
        return await listed(metadata)

    async def kill_(sandbox_id: str) -> bool:
        ended.set()
        return await kill(sandbox_id)

    monkeypatch.setattr(reaped.runtime, "list", list_)
    monkeypatch.setattr(reaped.runtime, "kill", kill_)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reaped.reaper.run)
            await ended.wait()
            tasks.cancel_scope.cancel()
