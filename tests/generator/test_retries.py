"""Retries: what is tried again, how long between, and what a person sees of it."""

import time
from datetime import timedelta

import anyio
import pytest

from eventstore import CommandHandler
from generator import Patience, Rate
from generator.errors import (
    RunnerBusy,
    RunnerFailed,
    SandboxBusy,
    SandboxError,
    SandboxFull,
    SandboxUnavailable,
)
from generator.rate import OnWait
from schemas import Phase, Status
from schemas.events import JobFailed, Limits, RetryScheduled
from tests.generator.builds import Builds, previews
from tests.generator.doubles import PATIENCE_S, ScriptedRunner, ScriptedRuntime

pytestmark = pytest.mark.anyio


async def test_a_busy_provider_is_asked_again_and_each_wait_is_told_before_it_begins(
    builds: Builds,
) -> None:
    claim = await builds.claimed()
    refusals = [SandboxBusy("too many at once"), SandboxError("a cut connection")]
    runtime = ScriptedRuntime(refusals=list(refusals))
    async with previews(runtime):
        job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    assert (job.status, job.retries) == (Status.READY, 2)
    told = await builds.told(claim, RetryScheduled)
    assert [(retry.phase, retry.step, retry.tries, retry.kind) for retry in told] == [
        (Phase.DEPS, "create_sandbox", 1, "sandbox_busy"),
        (Phase.DEPS, "create_sandbox", 2, "sandbox"),
    ]
    assert told[0].message == "too many at once"


@pytest.mark.parametrize("error", [SandboxUnavailable("no key"), SandboxFull("no room")])
async def test_what_will_not_pass_is_not_tried_again(builds: Builds, error: Exception) -> None:
    claim = await builds.claimed()
    runtime = ScriptedRuntime(refusals=[error])
    job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    assert (job.status, job.retries) == (Status.FAILED, 0)


async def test_a_step_is_tried_a_bounded_number_of_times(builds: Builds) -> None:
    claim = await builds.claimed()
    runtime = ScriptedRuntime(refusals=[SandboxBusy("full") for _ in range(9)])
    service = builds.service(ScriptedRunner(), runtime, patience=Patience(tries=3, first_s=0))
    job = await service.execute_build(claim)
    assert (job.failure_kind, job.retries) == ("sandbox_busy", 2)


async def test_a_wait_that_is_longer_than_the_patience_is_not_begun(builds: Builds) -> None:
    claim = await builds.claimed()
    runtime = ScriptedRuntime(refusals=[SandboxBusy("full", retry_after_s=3600)])
    job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    assert (job.failure_kind, job.retries) == ("sandbox_busy", 0)


async def test_a_sandbox_that_ends_in_the_middle_is_made_anew_from_the_manifest(
    builds: Builds,
) -> None:
    claim = await builds.claimed()
    runtime = ScriptedRuntime(dies_on=["install", "test"])
    runner = ScriptedRunner()
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(claim)
    assert (job.status, job.sandbox_id, runner.runs) == (Status.READY, "sb-3", 1)
    told = await builds.told(claim, RetryScheduled)
    assert [(retry.phase, retry.step, retry.kind) for retry in told] == [
        (Phase.DEPS, "sandbox", "sandbox_gone"),
        (Phase.CHECKS, "sandbox", "sandbox_gone"),
    ]
    assert [sandbox.commands for sandbox in runtime.made] == [
        ["install"],
        ["install", "test"],
        ["install", "test", "start"],
    ]


async def test_a_sandbox_that_ends_under_the_started_app_is_made_anew_before_the_probe_gives_up(
    builds: Builds,
) -> None:
    claim = await builds.claimed()
    runtime = ScriptedRuntime(dies_on=["start"])
    async with previews(runtime):
        with anyio.fail_after(PATIENCE_S):
            service = builds.service(ScriptedRunner(), runtime, probe_s=10 * PATIENCE_S)
            job = await service.execute_build(claim)
    assert (job.status, job.sandbox_id) == (Status.READY, "sb-2")
    (retry,) = await builds.told(claim, RetryScheduled)
    assert (retry.phase, retry.step, retry.kind) == (Phase.CHECKS, "sandbox", "sandbox_gone")


async def test_a_command_whose_connection_breaks_off_is_run_again_in_the_same_sandbox(
    builds: Builds,
) -> None:
    claim = await builds.claimed()
    runtime = ScriptedRuntime(breaks_off=["install", "test", "start"])
    async with previews(runtime):
        job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    assert (job.status, job.sandbox_id, job.round) == (Status.READY, "sb-1", 1)
    told = await builds.told(claim, RetryScheduled)
    assert [(retry.phase, retry.step, retry.kind) for retry in told] == [
        (Phase.DEPS, "install", "sandbox"),
        (Phase.CHECKS, "tests", "sandbox"),
        (Phase.CHECKS, "start", "sandbox"),
    ]
    (sandbox,) = runtime.made
    assert sandbox.commands == ["install", "install", "test", "test", "start", "start"]


async def test_a_command_that_breaks_off_again_and_again_fails_the_build(builds: Builds) -> None:
    claim = await builds.claimed()
    runtime = ScriptedRuntime(breaks_off=["test"] * 3)
    job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    assert (job.failure_kind, job.retries) == ("sandbox", 2)


async def test_an_install_that_fails_by_the_network_is_tried_again_before_the_app_is_blamed(
    builds: Builds,
) -> None:
    claim = await builds.claimed()
    codes = iter((1, 0))
    runtime = ScriptedRuntime(
        exit_codes={"install": lambda _: next(codes)},
        outputs={"install": "npm ERR! code EAI_AGAIN"},
    )
    runner = ScriptedRunner()
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(claim)
    assert (job.status, job.round, runner.runs) == (Status.READY, 1, 1)
    (retry,) = await builds.told(claim, RetryScheduled)
    assert (retry.step, retry.kind) == ("install", "check")


async def test_a_runner_that_is_refused_for_now_goes_on_from_what_it_had_finished(
    builds: Builds,
) -> None:
    claim = await builds.claimed()
    runner = ScriptedRunner(raises=[RunnerBusy("rate limit", retry_after_s=0.01)])
    runtime = ScriptedRuntime()
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(claim)
    assert job.status is Status.READY
    assert runner.tasks[1].drafted == {"headrace.toml", "app.py"}
    (retry,) = await builds.told(claim, RetryScheduled)
    assert (retry.step, retry.kind, retry.wait_s >= 0.01) == ("runner", "runner", True)


async def test_a_runner_that_gave_up_is_not_asked_again(builds: Builds) -> None:
    claim = await builds.claimed()
    runner = ScriptedRunner(raises=[RunnerFailed("it refuses")])
    job = await builds.service(runner).execute_build(claim)
    assert (job.failure_kind, runner.runs, job.retries) == ("runner", 1, 0)


def test_waits_grow_up_to_a_limit_and_are_spread_by_chance() -> None:
    patience = Patience(first_s=1, longest_s=10)
    assert [patience.wait_s(tries, None, 1.0) for tries in (1, 2, 3, 4, 5, 50)] == [
        1, 2, 4, 8, 10, 10,
    ]  # fmt: skip
    assert patience.wait_s(4, None, 0.25) == 2
    assert patience.wait_s(4, 30.0, 0.5) == 30.5


# --- deadlines -----------------------------------------------------------------------------------


async def test_a_job_that_takes_too_long_says_which_limit_and_in_which_phase(
    builds: Builds,
) -> None:
    claim = await builds.claimed(limits=Limits(max_wall_s=1))
    runtime = ScriptedRuntime(hang_on="install")
    job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    (failed,) = await builds.told(claim, JobFailed)
    assert (failed.kind, failed.phase) == ("timeout", Phase.DEPS)
    assert "in its deps phase, did not end within 1 s" in failed.message
    assert "max_wall_s" in failed.message
    assert job.status is Status.FAILED
    assert not runtime.living


async def test_the_time_of_a_job_counts_from_its_first_start_over_takeovers(
    builds: Builds, handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await builds.claimed(limits=Limits(max_wall_s=600))
    runtime = ScriptedRuntime(hang_on="install")
    service = builds.service(ScriptedRunner(), runtime)
    async with builds.interrupted(service, first, runtime.hanging.wait):
        pass
    clock = handler.clock
    monkeypatch.setattr(handler, "clock", lambda: clock() + timedelta(minutes=11))
    second = await builds.taken_over(first)
    job = await service.execute_build(second)
    assert job.failure_kind == "timeout"
    assert "did not end within 600 s" in (job.error_message or "")


# --- the rate of new sandboxes -------------------------------------------------------------------


async def test_all_workers_share_one_rate_of_new_sandboxes(handler: CommandHandler) -> None:
    rates = [Rate(handler.store, "e2b", per_s=50) for _ in range(3)]
    waits: list[float] = []

    async def note(wait_s: float) -> None:
        waits.append(wait_s)

    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for rate in rates * 2:
            tasks.start_soon(rate.turn, note)
    assert time.monotonic() - began >= 0.09  # six turns, 20 ms apart: the last after five of them
    assert len(waits) == 5
    assert max(waits) > 0.05


async def test_a_turn_that_is_too_far_off_is_refused_as_busy(
    handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.rate.LONGEST_WAIT_S", 0.0)
    rate = Rate(handler.store, "e2b", per_s=0.01)

    async def note(wait_s: float) -> None:
        raise AssertionError

    await rate.turn(note)
    with pytest.raises(SandboxBusy) as caught:
        await rate.turn(note)
    assert caught.value.retry_after_s == pytest.approx(100, abs=5)


async def test_a_build_waits_for_its_turn_and_says_so(builds: Builds) -> None:
    class Queue(Rate):
        async def turn(self, on_wait: OnWait) -> None:
            await on_wait(2.5)

    claim = await builds.claimed()
    queue, runtime = Queue(builds.handler.store, "scripted", per_s=1), ScriptedRuntime()
    async with previews(runtime):
        service = builds.service(ScriptedRunner(), runtime, sandbox_rate=queue)
        job = await service.execute_build(claim)
    assert job.status is Status.READY
    lines = [entry.data async for entry in builds.progress(claim.ref)]
    assert any(b"waiting 2.5 s for a turn" in line for line in lines)
