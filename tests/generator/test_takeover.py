"""Takeover: what another worker goes on from, and what becomes of what the first has left."""

import anyio
import pytest

from eventstore import CommandHandler
from generator.runner import RunnerTask
from schemas import Phase, Status
from schemas.commands import (
    CompletePhase,
    RecordFailedChecks,
    RequestCancel,
    StartJob,
    StartPhase,
    Usage,
)
from schemas.events import (
    JobCancelled,
    JobFailed,
    Limits,
    Metered,
    PhaseCompleted,
    RetryScheduled,
    SandboxCreated,
)
from tests.generator.builds import Builds, previews
from tests.generator.doubles import ScriptedRunner, ScriptedRuntime, mended_app

pytestmark = pytest.mark.anyio


async def until_kept(builds: Builds, job: str, files: int) -> None:
    """Until a draft with so many files is kept."""
    with anyio.fail_after(20):
        while True:
            draft = await builds.artifacts.drafts(job).newest(round_=1, before=99)
            if len(draft.files) >= files and draft.usage != Usage():
                return
            await anyio.sleep(0.01)


async def test_a_takeover_in_the_middle_of_the_code_goes_on_from_the_finished_files(
    builds: Builds,
) -> None:
    first = await builds.claimed()
    hanging = ScriptedRunner(hang=True, hang_after=1, used_by_then=Usage(3, 4, 0.25))
    async with builds.interrupted(
        builds.service(hanging), first, lambda: until_kept(builds, first.ref.job, 1)
    ):
        pass
    second = await builds.taken_over(first)
    runner, runtime = ScriptedRunner(), ScriptedRuntime()
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(second)
    assert (job.status, job.attempt) == (Status.READY, 2)
    (task,) = runner.tasks
    assert task.drafted == {"headrace.toml"}
    assert list(runner.found[0]) == ["headrace.toml"]
    code = (await builds.told(second, PhaseCompleted))[1]
    assert (code.input_tokens, code.output_tokens, code.cost_usd) == (13, 24, 0.75)
    assert code.evidence["drafted"] == 1
    assert list((builds.home / "artifacts").glob("drafts/**/*.json")) == []


async def test_a_deletion_in_a_draft_is_not_undone_by_a_takeover(builds: Builds) -> None:
    manifest = await builds.artifacts.put({"headrace.toml": b"", "old.py": b"old"})
    first = await builds.claimed(base_build=1, base_manifest=manifest)
    hanging = ScriptedRunner(
        hang=True, hang_after=1, deletes=("old.py",), used_by_then=Usage(1, 1, 0.0)
    )
    async with builds.interrupted(
        builds.service(hanging), first, lambda: until_kept(builds, first.ref.job, 1)
    ):
        pass
    runner = ScriptedRunner(hang=True)
    second = await builds.taken_over(first)
    async with builds.interrupted(builds.service(runner), second, runner.hanging.wait):
        assert list(runner.found[0]) == ["headrace.toml"]


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
async def test_what_a_predecessor_has_used_is_told_also_when_the_job(
    builds: Builds, handler: CommandHandler, end: str
) -> None:
    first = await builds.claimed()
    hanging = ScriptedRunner(hang=True, used_by_then=Usage(3, 4, 0.25))
    async with builds.interrupted(
        builds.service(hanging), first, lambda: until_kept(builds, first.ref.job, 0)
    ):
        pass
    second = await builds.taken_over(first)
    ended: Metered
    if end == "fails":
        broken = ScriptedRunner(raises=[ZeroDivisionError()])
        await builds.service(broken).execute_build(second)
        (ended,) = await builds.told(second, JobFailed)
    else:
        await handler.handle(second.ref, RequestCancel("ann"))
        await builds.service(ScriptedRunner()).execute_build(second)
        (ended,) = await builds.told(second, JobCancelled)
    assert (ended.input_tokens, ended.output_tokens, ended.cost_usd) == (3, 4, 0.25)


@pytest.mark.parametrize("command", ["install", "test"])
async def test_a_living_sandbox_is_gone_on_with_and_what_runs_in_it_is_ended(
    builds: Builds, command: str
) -> None:
    first = await builds.claimed()
    runner, runtime = ScriptedRunner(), ScriptedRuntime(hang_on=command)
    service = builds.service(runner, runtime)
    async with builds.interrupted(service, first, runtime.hanging.wait):
        pass
    runtime.hang_on = None
    second = await builds.taken_over(first)
    async with previews(runtime):
        job = await service.execute_build(second)
    assert (job.status, runner.runs) == (Status.READY, 1)
    (sandbox,) = runtime.made
    assert (job.sandbox_id, sandbox.emptied) == (sandbox.sandbox_id, 1)
    again = [command] if command == "test" else ["install", "test"]
    first_time = ["install", "test"] if command == "test" else ["install"]
    assert sandbox.commands == [*first_time, *again, "start"]


async def test_a_sandbox_that_cannot_be_asked_at_once_is_asked_again(builds: Builds) -> None:
    first = await builds.claimed()
    runner, runtime = ScriptedRunner(), ScriptedRuntime(hang_on="test")
    service = builds.service(runner, runtime)
    async with builds.interrupted(service, first, runtime.hanging.wait):
        pass
    runtime.hang_on, runtime.breaks_off = None, ["read .headrace/manifest"]
    second = await builds.taken_over(first)
    async with previews(runtime):
        job = await service.execute_build(second)
    assert (job.status, job.sandbox_id) == (Status.READY, "sb-1")
    (retry,) = await builds.told(second, RetryScheduled)
    assert (retry.phase, retry.step) == (Phase.CHECKS, "ask_sandbox")


async def test_a_sandbox_that_has_ended_is_made_anew_from_the_manifest(builds: Builds) -> None:
    first = await builds.claimed()
    runner, runtime = ScriptedRunner(), ScriptedRuntime(hang_on="test")
    service = builds.service(runner, runtime)
    async with builds.interrupted(service, first, runtime.hanging.wait):
        await runtime.kill("sb-1")
    runtime.hang_on = None
    second = await builds.taken_over(first)
    async with previews(runtime):
        job = await service.execute_build(second)
    assert (job.status, job.sandbox_id, runner.runs) == (Status.READY, "sb-2", 1)
    assert runtime.made[1].app_files == runtime.made[0].app_files
    assert runtime.made[1].metadata["attempt"] == "2"


async def test_a_sandbox_that_nobody_recorded_is_found_and_ended(builds: Builds) -> None:
    first = await builds.claimed()
    other = await builds.claimed("w9")
    runner, runtime = ScriptedRunner(hang=True), ScriptedRuntime()
    async with builds.interrupted(builds.service(runner, runtime), first, runner.hanging.wait):
        pass
    stray = runtime.make({"job": first.ref.job, "attempt": "1"})
    anothers = runtime.make({"job": other.ref.job, "attempt": "1"})
    second = await builds.taken_over(first)
    async with previews(runtime):
        job = await builds.service(ScriptedRunner(), runtime).execute_build(second)
    assert job.status is Status.READY
    assert stray.sandbox_id not in runtime.living
    assert list(runtime.living) == [anothers.sandbox_id, job.sandbox_id]


async def test_a_takeover_in_the_middle_of_a_repair_knows_the_failure_and_goes_on_in_its_round(
    builds: Builds,
) -> None:
    class Hangs(ScriptedRunner):
        async def run(self, task: RunnerTask, *rest: object) -> Usage:
            self.hang = task.round == 2
            return await super().run(task, *rest)  # type: ignore[arg-type]

    first = await builds.claimed()
    runner, runtime = Hangs(app=mended_app), ScriptedRuntime(exit_codes={"test": 1})
    async with builds.interrupted(builds.service(runner, runtime), first, runner.hanging.wait):
        pass
    runtime.exit_codes = {}
    second, mending = await builds.taken_over(first), ScriptedRunner(app=mended_app)
    async with previews(runtime):
        job = await builds.service(mending, runtime).execute_build(second)
    assert (job.status, job.round, job.attempt) == (Status.READY, 2, 2)
    (task,) = mending.tasks
    assert task.failure is not None
    assert task.failure.command == "test"
    assert task.base_files["app.py"] == b"# a list, round 1\n"
    assert len(await builds.told(second, SandboxCreated)) == 1


async def test_repairs_that_were_at_their_end_stay_at_their_end(
    builds: Builds, handler: CommandHandler
) -> None:
    first = await builds.claimed(limits=Limits(max_repairs=0))
    for command in (
        StartJob("w1", 1),
        StartPhase(Phase.SCAFFOLD),
        CompletePhase(Phase.SCAFFOLD, 1),
        StartPhase(Phase.CODE),
        CompletePhase(Phase.CODE, 1),
        StartPhase(Phase.DEPS),
        RecordFailedChecks("f-1", "install", 1, "red", "it cannot be installed"),
    ):
        await handler.handle(first.ref, command, claim=first)
    second, runner = await builds.taken_over(first), ScriptedRunner()
    job = await builds.service(runner).execute_build(second)
    assert (job.failure_kind, runner.runs) == ("needs_review", 0)
    assert "round 1: it cannot be installed" in (job.error_message or "")


async def test_a_superseded_worker_leaves_the_sandbox_to_who_goes_on_with_it(
    builds: Builds,
) -> None:
    first = await builds.claimed()
    runtime = ScriptedRuntime(hang_on="install")
    service = builds.service(ScriptedRunner(), runtime)
    async with builds.superseded(service, first, runtime.hanging.wait) as second:
        runtime.go_on.set()
    assert list(runtime.living) == ["sb-1"]
    async with previews(runtime):
        job = await service.execute_build(second)
    assert (job.status, job.sandbox_id) == (Status.READY, "sb-1")
