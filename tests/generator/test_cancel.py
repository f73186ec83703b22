"""Cancelling: in every phase, twice, against what does not want to stop, and against READY."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from eventstore import CommandHandler, Fenced
from generator.errors import GenerationError, SandboxBusy
from generator.runner import Listener, RunnerTask
from generator.service import GenerationService
from generator.workspace import Workspace
from schemas import Job, JobIsTerminal, JobRef, Status
from schemas.commands import RequestCancel, StartJob, Usage
from schemas.events import JobCancelled
from tests.generator.builds import Builds, previews
from tests.generator.doubles import PATIENCE_S, ScriptedRunner, ScriptedRuntime, Signal

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running(builds: Builds, service: GenerationService) -> AsyncIterator[JobRef]:
    """A build under way; the block's end waits for its end."""
    claim = await builds.claimed()
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.execute_build, claim)
            yield claim.ref


async def cancel(handler: CommandHandler, ref: JobRef) -> Job:
    return (await handler.handle(ref, RequestCancel(by="ann"))).job


async def test_a_runner_that_never_yields_does_not_hold_up_the_cancel(
    builds: Builds, handler: CommandHandler
) -> None:
    runner = ScriptedRunner(block=True, hang_after=1)
    try:
        async with running(builds, builds.service(runner)) as ref:
            await runner.hanging.wait()
            await cancel(handler, ref)
        assert not runner.let_go.is_set()
        assert (await handler.load(ref)).status is Status.CANCELLED
    finally:
        runner.let_go.set()


async def test_a_job_that_is_cancelled_behind_its_claim_does_not_begin(
    builds: Builds, handler: CommandHandler
) -> None:
    ref = await builds.queued()
    claim = await builds.claim("w1", heard_of=[ref.job])
    await cancel(handler, ref)
    with capture_logs() as said, pytest.raises(Fenced):
        await builds.service(None).execute_build(claim)
    assert await builds.types(claim) == ["JobQueued", "JobCancelled"]
    assert said == []


async def test_a_job_that_is_cancelled_behind_its_takeover_is_ended(
    builds: Builds, handler: CommandHandler
) -> None:
    first = await builds.claimed()
    await handler.handle(first.ref, StartJob("w1", 1), claim=first)
    await handler.store.work.release(first)
    second = await builds.claim("w2", heard_of=[first.ref.job])
    await cancel(handler, first.ref)
    job = await builds.service(None).execute_build(second)
    assert job.status is Status.CANCELLED
    assert await builds.types(second) == [
        "JobQueued",
        "JobStarted",
        "CancelRequested",
        "JobCancelled",
    ]


async def test_a_runner_that_was_cut_off_can_neither_write_nor_speak(
    builds: Builds, handler: CommandHandler
) -> None:
    errors: list[Exception] = []

    class Stubborn(ScriptedRunner):
        async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
            try:
                return await super().run(task, workspace, listener)
            except SystemExit:  # how the blocking loop is ended
                for speak in (
                    partial(workspace.write, "late.py", ""),
                    partial(listener.said, "still here"),
                ):
                    try:
                        await speak()
                    except GenerationError as error:
                        errors.append(error)
                over.set()
                raise

    over = Signal()
    runner = Stubborn(block=True, hang_after=1)
    async with running(builds, builds.service(runner)) as ref:
        await runner.hanging.wait()
        await cancel(handler, ref)
    await over.wait()
    assert len(errors) == 2
    assert list((builds.home / "workspaces").glob("**/late.py")) == []


async def test_what_a_cancelled_run_has_used_stands_in_the_event(
    builds: Builds, handler: CommandHandler
) -> None:
    runner = ScriptedRunner(hang=True, used_by_then=Usage(7, 8, 0.5))
    async with running(builds, builds.service(runner)) as ref:
        await runner.hanging.wait()
        await cancel(handler, ref)
    events = await handler.store.read_job(ref)
    last = events[-1].payload
    assert isinstance(last, JobCancelled)
    assert (last.input_tokens, last.output_tokens, last.cost_usd) == (7, 8, 0.5)


@pytest.mark.parametrize("command", ["install", "test"])
async def test_a_command_that_hangs_is_ended_with_its_sandbox(
    builds: Builds, handler: CommandHandler, command: str
) -> None:
    runtime = ScriptedRuntime(hang_on=command)
    async with running(builds, builds.service(ScriptedRunner(), runtime)) as ref:
        await runtime.hanging.wait()
        await cancel(handler, ref)
    assert (await handler.load(ref)).status is Status.CANCELLED
    assert runtime.made
    assert not runtime.living


async def test_a_sandbox_whose_making_was_broken_off_is_found_and_ended(
    builds: Builds, handler: CommandHandler
) -> None:
    making = anyio.Event()

    class Slow(ScriptedRuntime):
        async def create(self, *, metadata, timeout_s):  # type: ignore[no-untyped-def]
            self.make(metadata, timeout_s)  # it is there, and the answer never comes
            making.set()
            await anyio.sleep_forever()

    runtime = Slow()
    async with running(builds, builds.service(ScriptedRunner(), runtime)) as ref:
        await making.wait()
        await cancel(handler, ref)
    assert (await handler.load(ref)).status is Status.CANCELLED
    assert runtime.made
    assert not runtime.living


async def test_cancelling_twice_is_cancelling_once(builds: Builds, handler: CommandHandler) -> None:
    runner = ScriptedRunner(hang=True)
    async with running(builds, builds.service(runner)) as ref:
        await runner.hanging.wait()
        await cancel(handler, ref)
        with suppress(JobIsTerminal):  # it may have been quick
            await cancel(handler, ref)
    told = [event.type for event in await handler.store.read_job(ref)]
    assert (told.count("CancelRequested"), told.count("JobCancelled")) == (1, 1)


async def test_a_wait_for_a_retry_is_cancelled_too(builds: Builds, handler: CommandHandler) -> None:
    runtime = ScriptedRuntime(refusals=[SandboxBusy("full", retry_after_s=100)])
    async with running(builds, builds.service(ScriptedRunner(), runtime)) as ref:
        await builds.until(ref, "RetryScheduled")
        await cancel(handler, ref)
    assert (await handler.load(ref)).status is Status.CANCELLED


async def test_of_a_cancel_and_ready_one_wins_and_all_agree(
    builds: Builds, handler: CommandHandler
) -> None:
    runtime = ScriptedRuntime()

    async def cancel_late(ref: JobRef, turns: int) -> None:
        await builds.until(ref, "PhaseStarted", phase="checks")
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        try:
            await cancel(handler, ref)
        except JobIsTerminal:
            refused.append(ref)

    async with previews(runtime):
        for turns in range(0, 60, 12):
            refused: list[JobRef] = []
            service = builds.service(ScriptedRunner(), runtime)
            async with running(builds, service) as ref:
                await cancel_late(ref, turns)
            job = await handler.load(ref)
            assert job.status in (Status.READY, Status.CANCELLED)
            assert (job.status is Status.READY) == bool(refused)
            assert (job.sandbox_id in runtime.living) == (job.status is Status.READY)
