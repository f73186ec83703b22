"""`GenerationService.execute_build` on the real log, with scripted runner and sandboxes."""

import gc
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from eventstore import Appended, Claim, CommandHandler, Fenced, RedisUnavailable
from generator.errors import RunnerFailed, SandboxUnavailable
from generator.transcript import Transcript
from schemas import Phase, Status
from schemas.commands import RequestCancel, StartJob, StartPhase
from schemas.events import ChecksFailed, JobFailed, JobReady, Limits, PhaseCompleted, SandboxCreated
from tests.generator.builds import TENANT, Builds, app_answering
from tests.generator.doubles import ScriptedRunner, ScriptedRuntime

pytestmark = pytest.mark.anyio

NO_REPAIRS = Limits(max_repairs=0)


def marker_of(claim: Claim) -> str:
    """The marker as `Build.marker` has it, written down once more on purpose."""
    from hashlib import sha256

    return sha256(f"{claim.ref.job}/1".encode()).hexdigest()[:16]


WHOLE_WALK = [
    "JobQueued",
    "JobStarted",
    *["PhaseStarted", "PhaseCompleted"] * 2,
    "PhaseStarted",
    "SandboxCreated",
    "PhaseCompleted",
    "PhaseStarted",
    "PhaseCompleted",
    "JobReady",
]


async def test_without_a_runner_the_whole_fsm_is_walked_without_a_sandbox(
    builds: Builds, handler: CommandHandler
) -> None:
    claim = await builds.claimed()
    job = await builds.service(None, ScriptedRuntime()).execute_build(claim)
    assert job.status is Status.READY
    assert await builds.types(claim) == [event for event in WHOLE_WALK if event != "SandboxCreated"]
    assert (job.build_version, job.preview_url, job.sandbox_id) == ("build_v0_1", None, None)


async def test_a_build_goes_through_all_phases_and_ready_says_where_it_runs(
    builds: Builds, handler: CommandHandler
) -> None:
    claim = await builds.claimed()
    async with app_answering(lambda: marker_of(claim)) as url:
        runtime = ScriptedRuntime(preview=url)
        job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    events = await builds.events(claim)
    assert [event.type for event in events] == WHOLE_WALK
    ready = events[-1].payload
    assert isinstance(ready, JobReady)
    assert (ready.sandbox_id, ready.preview_url, ready.build_number) == ("sb-1", url, 1)
    assert ready.workspace_path is not None
    assert ready.workspace_path.endswith(f"{claim.ref.job}/1")
    assert (job.input_tokens, job.output_tokens, job.cost_usd) == (10, 20, 0.5)
    assert list(runtime.living) == ["sb-1"]


async def test_the_sandbox_is_made_in_deps_with_an_hour_to_live_and_holds_what_was_written(
    builds: Builds, handler: CommandHandler
) -> None:
    claim = await builds.claimed()
    async with app_answering(lambda: marker_of(claim)) as url:
        runtime = ScriptedRuntime(preview=url)
        await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    (sandbox,) = runtime.made
    assert sandbox.timeout_s == 3600
    assert sandbox.metadata == {
        "headrace": handler.store.lineage,
        "tenant": TENANT,
        "job": claim.ref.job,
        "attempt": "1",
    }
    assert sandbox.files["app.py"] == b"# a list\n"
    assert sandbox.commands == ["install", "test", "start"]
    assert sandbox.installed == ["install"]
    events = await builds.events(claim)
    created = next(e for e in events if isinstance(e.payload, SandboxCreated))
    deps_started = events[created.version - 2].payload
    assert deps_started.model_dump()["phase"] == Phase.DEPS


async def test_a_build_is_logged_as_started_when_its_start_is_in_the_log(builds: Builds) -> None:
    claim = await builds.claimed()
    with capture_logs() as said:
        await builds.service(None).execute_build(claim)
    assert said == [
        {
            "event": "build_started",
            "log_level": "info",
            "job": claim.ref.job,
            "attempt": 1,
            "worker": "w1",
        }
    ]


async def test_a_sandbox_is_prepared_while_the_code_is_written(builds: Builds) -> None:
    claim = await builds.claimed()
    async with app_answering(lambda: marker_of(claim)) as url:
        runtime = ScriptedRuntime(preview=url)
        prepared = []
        runner = ScriptedRunner(before=lambda: prepared.append(runtime.prepared))
        await builds.service(runner, runtime).execute_build(claim)
    assert (prepared, runtime.prepared, runtime.closed) == ([1], 1, 1)


async def test_no_code_is_paid_for_where_no_sandbox_can_be_made(builds: Builds) -> None:
    claim = await builds.claimed()
    runtime = ScriptedRuntime(cannot_be_made=SandboxUnavailable("use Linux"))
    runner = ScriptedRunner()
    job = await builds.service(runner, runtime).execute_build(claim)
    assert job.status is Status.FAILED
    assert job.error_message is not None
    assert "use Linux" in job.error_message
    assert (runner.runs, runtime.closed) == (0, 1)


async def test_the_evidence_of_the_checks_stands_in_the_event(
    builds: Builds, handler: CommandHandler
) -> None:
    claim = await builds.claimed()
    async with app_answering(lambda: marker_of(claim)) as url:
        await builds.service(ScriptedRunner(), ScriptedRuntime(preview=url)).execute_build(claim)
    done = (await builds.events(claim))[-2].payload
    assert isinstance(done, PhaseCompleted)
    assert done.evidence["probe_status"] == 200
    assert done.evidence["probe_marker"] == marker_of(claim)
    assert done.evidence["tests_exit_code"] == 0


async def test_how_the_runner_worked_stands_in_the_evidence_beside_what_is_known_of_its_files(
    builds: Builds,
) -> None:
    claim = await builds.claimed(limits=NO_REPAIRS)
    runtime = ScriptedRuntime(exit_codes={"install": 3})
    await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    _, code, *_ = await builds.told(claim, PhaseCompleted)
    assert code.evidence["models"] == "pen-and-paper"
    assert (code.evidence["runner"], code.evidence["files"]) == ("scripted", 2)


@pytest.mark.parametrize(("command", "phase"), [("install", "deps"), ("test", "checks")])
async def test_a_command_that_fails_ends_the_job_and_the_sandbox(
    builds: Builds, handler: CommandHandler, command: str, phase: str
) -> None:
    claim = await builds.claimed(limits=NO_REPAIRS)
    runtime = ScriptedRuntime(exit_codes={command: 3})
    job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    assert job.status is Status.FAILED
    assert job.failed_phase == phase
    assert "exit code 3" in (job.error_message or "")
    assert (job.debug_id or "").startswith("dbg-")
    assert runtime.made
    assert not runtime.living


async def test_failed_checks_leave_their_output_in_the_log(
    builds: Builds, handler: CommandHandler
) -> None:
    claim = await builds.claimed(limits=NO_REPAIRS)
    service = builds.service(ScriptedRunner(), ScriptedRuntime(exit_codes={"test": 1}))
    await service.execute_build(claim)
    failed = (await builds.events(claim))[-2].payload
    assert isinstance(failed, ChecksFailed)
    assert (failed.command, failed.exit_code, failed.output) == ("test", 1, "test output")


async def test_another_builds_marker_is_not_ready(builds: Builds, handler: CommandHandler) -> None:
    claim = await builds.claimed()
    async with app_answering(lambda: "somebody-else") as url:
        runtime = ScriptedRuntime(preview=url)
        service = builds.service(ScriptedRunner(), runtime, probe_s=0.2)
        job = await service.execute_build(claim)
    assert job.status is Status.FAILED
    assert "another build's marker" in (job.error_message or "")
    assert not runtime.living


async def test_a_runner_that_gives_up_says_why(builds: Builds, handler: CommandHandler) -> None:
    def give_up() -> None:
        raise RunnerFailed("the model refused; reword the goal")

    claim = await builds.claimed()
    job = await builds.service(ScriptedRunner(before=give_up)).execute_build(claim)
    failed = (await builds.events(claim))[-1].payload
    assert isinstance(failed, JobFailed)
    assert (failed.kind, failed.phase) == ("runner", Phase.CODE)
    assert failed.message == "the model refused; reword the goal"
    assert job.debug_id == failed.debug_id


async def test_a_bug_ends_as_an_event_that_keeps_its_details_in_the_log_output(
    builds: Builds, handler: CommandHandler
) -> None:
    def stumble() -> None:
        raise ZeroDivisionError("secret detail")

    claim = await builds.claimed()
    job = await builds.service(ScriptedRunner(before=stumble)).execute_build(claim)
    assert job.failure_kind == "internal"
    assert "secret detail" not in (job.error_message or "")
    assert (job.debug_id or "") in (job.error_message or "")


async def test_a_runner_that_hangs_is_stopped_at_its_deadline(
    builds: Builds, handler: CommandHandler
) -> None:
    claim = await builds.claimed()
    service = builds.service(ScriptedRunner(hang=True), ScriptedRuntime(), code_s=0.05)
    job = await service.execute_build(claim)
    assert (job.failure_kind, job.failed_phase) == ("timeout", Phase.CODE)
    assert "the scripted runner did not end within 0.05 s" in (job.error_message or "")
    assert job.retries == 0


async def test_a_walk_without_a_runner_leaves_nothing_to_the_collector(builds: Builds) -> None:
    claim = await builds.claimed()
    gc.collect()
    gc.disable()
    try:
        await builds.service(None).execute_build(claim)
        assert not [one for one in gc.get_objects() if isinstance(one, Transcript)]
    finally:
        gc.enable()


async def test_cancelling_stops_a_runner_that_never_yields_a_result(
    builds: Builds, handler: CommandHandler
) -> None:
    claim = await builds.claimed()
    runner = ScriptedRunner(hang=True)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(builds.service(runner, ScriptedRuntime()).execute_build, claim)
            await runner.started.wait()
            await handler.handle(claim.ref, RequestCancel(by="ann"))
    assert (await builds.types(claim))[-2:] == ["CancelRequested", "JobCancelled"]


async def test_cancelling_a_hung_install_ends_the_sandbox(
    builds: Builds, handler: CommandHandler
) -> None:
    claim = await builds.claimed()
    runtime = ScriptedRuntime(hang_on="install")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(builds.service(ScriptedRunner(), runtime).execute_build, claim)
            await runtime.hanging.wait()
            await handler.handle(claim.ref, RequestCancel(by="ann"))
    assert (await handler.load(claim.ref)).status is Status.CANCELLED
    assert runtime.made
    assert not runtime.living


async def test_a_takeover_goes_on_from_the_first_phase_not_completed_and_pays_the_runner_once(
    builds: Builds, handler: CommandHandler
) -> None:
    first = await builds.claimed()
    runner = ScriptedRunner()
    runtime = ScriptedRuntime(hang_on="install")
    service = builds.service(runner, runtime)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service.execute_build, first)
        await runtime.hanging.wait()
        tasks.cancel_scope.cancel()
    await handler.store.work.release(first)
    (second,) = await handler.store.work.claim(
        handler.store.partition(TENANT), "w2", free_slots=1, lease_ms=0
    )
    runtime.hang_on = None
    async with app_answering(lambda: marker_of(second)) as url:
        runtime.preview = url
        job = await service.execute_build(second)
    assert (job.status, job.attempt) == (Status.READY, 2)
    assert runner.runs == 1
    assert list(runtime.living) == [job.sandbox_id]


async def test_a_superseded_worker_stops_and_ends_the_sandbox_it_made(
    builds: Builds, handler: CommandHandler
) -> None:
    old = await builds.claimed()
    runtime = ScriptedRuntime()
    stolen: list[Claim] = []

    class Thief(ScriptedRuntime):
        async def create(self, **arguments):  # type: ignore[no-untyped-def]
            sandbox = await runtime.create(**arguments)
            await handler.store.work.release(old)
            stolen.extend(
                await handler.store.work.claim(
                    handler.store.partition(TENANT), "w2", free_slots=1, lease_ms=0
                )
            )
            return sandbox

        async def kill(self, sandbox_id: str) -> bool:
            return await runtime.kill(sandbox_id)

    with pytest.raises(Fenced):
        await builds.service(ScriptedRunner(), Thief()).execute_build(old)
    assert len(stolen) == 1
    assert runtime.made
    assert not runtime.living


async def test_two_builds_that_end_at_once_get_the_numbers_one_and_two(
    builds: Builds, handler: CommandHandler
) -> None:
    claims = [await builds.claimed(), await builds.claimed("w2")]
    service = builds.service(None, ScriptedRuntime())
    async with anyio.create_task_group() as tasks:
        for claim in claims:
            tasks.start_soon(service.execute_build, claim)
    numbers = {(await handler.load(claim.ref)).build_number for claim in claims}
    assert numbers == {1, 2}


async def test_a_job_cancelled_before_its_takeover_is_only_confirmed(
    builds: Builds, handler: CommandHandler
) -> None:
    claim = await builds.claimed()
    await handler.handle(claim.ref, StartJob("w0", 1))
    await handler.handle(claim.ref, StartPhase(Phase.SCAFFOLD))
    await handler.handle(claim.ref, RequestCancel(by="ann"))
    runner = ScriptedRunner()
    job = await builds.service(runner, ScriptedRuntime()).execute_build(claim)
    assert job.status is Status.CANCELLED
    assert runner.runs == 0


async def test_a_provider_that_stumbles_at_the_end_does_not_keep_the_job_from_ending(
    builds: Builds, handler: CommandHandler
) -> None:
    class Stumbling(ScriptedRuntime):
        async def kill(self, sandbox_id: str) -> bool:
            raise OSError("the registry is gone")

    claim = await builds.claimed()
    runtime = Stumbling(exit_codes={"test": 1})
    job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    assert job.status is Status.FAILED
    assert job.failure_kind == "needs_review"


async def test_a_redis_that_is_away_between_two_phases_costs_no_second_run_of_the_runner(
    builds: Builds, handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await builds.claimed()
    append, away = handler.store.append, [1, 2, 3]

    async def unanswered(*args: Any, **kwargs: Any) -> Appended:
        done = await append(*args, **kwargs)
        if runner.runs and away:
            away.pop()
            raise RedisUnavailable("the connection broke")
        return done

    runner = ScriptedRunner()
    monkeypatch.setattr(handler.store, "append", unanswered)
    async with app_answering(lambda: marker_of(claim)) as url:
        job = await builds.service(runner, ScriptedRuntime(preview=url)).execute_build(claim)
    assert (job.status, job.attempt, runner.runs, away) == (Status.READY, 1, 1, [])
