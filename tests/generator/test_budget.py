"""Budgets: what a run may use, and what happens when a job has used it."""

import anyio
import pytest

from eventstore import RedisUnavailable
from generator import Allowance
from generator.budget import DayLeft
from schemas import Job, Phase, Status
from schemas.commands import Usage
from schemas.events import JobFailed, Limits
from tests.generator.builds import Builds, previews
from tests.generator.doubles import PATIENCE_S, ScriptedRunner, ScriptedRuntime, mended_app

pytestmark = pytest.mark.anyio


async def test_the_runner_is_told_what_the_limits_leave(builds: Builds) -> None:
    claim = await builds.claimed(
        limits=Limits(max_tokens=100, max_cost_usd=2.0, max_wall_s=600, max_repairs=1)
    )
    runner = ScriptedRunner(app=mended_app)
    codes = iter((1, 0))
    runtime = ScriptedRuntime(exit_codes={"test": lambda _: next(codes)})
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(claim)
    assert job.status is Status.READY
    first, second = (task.allowance for task in runner.tasks)
    assert (first.tokens, first.cost_usd) == (100, 2.0)
    assert (second.tokens, second.cost_usd) == (70, 1.5)
    assert first.seconds is not None
    assert second.seconds is not None
    assert 0 < second.seconds < first.seconds <= 600


async def test_a_job_without_limits_leaves_its_runner_unlimited(builds: Builds) -> None:
    claim = await builds.claimed()
    runner = ScriptedRunner(hang=True)
    async with builds.interrupted(builds.service(runner), claim, runner.hanging.wait):
        pass
    allowance = runner.tasks[0].allowance
    assert (allowance.tokens, allowance.cost_usd, allowance.seconds) == (None, None, None)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(max_tokens=29), "30 tokens were used and 29 are allowed"),
        (Limits(max_cost_usd=0.4), "0.5 USD were spent and 0.4 are allowed"),
    ],
)
async def test_a_run_that_used_more_than_is_allowed_ends_the_job(
    builds: Builds, limits: Limits, words: str
) -> None:
    claim = await builds.claimed(limits=limits)
    runtime = ScriptedRuntime()
    await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    (failed,) = await builds.told(claim, JobFailed)
    assert (failed.kind, failed.phase) == ("budget", Phase.CODE)
    assert words in failed.message
    assert (failed.input_tokens, failed.output_tokens, failed.cost_usd) == (10, 20, 0.5)
    assert not runtime.made


async def test_a_run_is_stopped_as_soon_as_it_tells_of_too_much(builds: Builds) -> None:
    claim = await builds.claimed(limits=Limits(max_tokens=10))
    runner = ScriptedRunner(hang=True, used_by_then=Usage(6, 5, 0.0))
    job = await builds.service(runner).execute_build(claim)
    assert job.failure_kind == "budget"
    assert not runner.hanging.is_set()


async def test_a_budget_that_is_spent_ends_the_repairs(builds: Builds) -> None:
    claim = await builds.claimed(limits=Limits(max_tokens=30))
    runner = ScriptedRunner(app=mended_app)
    runtime = ScriptedRuntime(exit_codes={"test": 1})
    job = await builds.service(runner, runtime).execute_build(claim)
    assert (job.failure_kind, runner.runs) == ("needs_review", 1)
    assert "all of its 30 tokens are used" in (job.error_message or "")


def day_with(left: Allowance) -> DayLeft:
    async def day_left(_: Job, __: Usage) -> Allowance:
        return left

    return day_left


async def test_a_run_may_use_no_more_than_its_tenants_day_has_left(builds: Builds) -> None:
    claim = await builds.claimed(limits=Limits(max_tokens=100, max_cost_usd=2.0))
    runner, runtime = ScriptedRunner(), ScriptedRuntime()
    service = builds.service(
        runner, runtime, day_left=day_with(Allowance(tokens=500, cost_usd=0.75))
    )
    async with previews(runtime):
        job = await service.execute_build(claim)
    assert job.status is Status.READY
    assert (runner.tasks[0].allowance.tokens, runner.tasks[0].allowance.cost_usd) == (100, 0.75)


@pytest.mark.parametrize("left", [Allowance(tokens=0), Allowance(cost_usd=0.0)])
async def test_a_job_that_was_queued_before_the_day_was_used_up_asks_no_model(
    builds: Builds, left: Allowance
) -> None:
    claim = await builds.claimed()
    runner = ScriptedRunner()
    job = await builds.service(runner, day_left=day_with(left)).execute_build(claim)
    assert (job.status, job.failure_kind, runner.runs) == (Status.FAILED, "budget", 0)
    assert "midnight UTC" in (job.error_message or "")


def day_of(tokens: int, *, used_by_others: list[int]) -> DayLeft:
    """A day that has so many tokens, of which others use these, one look after the other."""

    async def day_left(_: Job, untold: Usage) -> Allowance:
        others = used_by_others.pop(0)
        return Allowance(tokens=tokens - others - untold.input_tokens - untold.output_tokens)

    return day_left


async def test_a_run_is_stopped_when_others_have_used_up_the_day_meanwhile(builds: Builds) -> None:
    claim = await builds.claimed(limits=Limits(max_tokens=100))
    runner = ScriptedRunner(hang=True, used_by_then=Usage(6, 5, 0.0))
    service = builds.service(runner, day_left=day_of(100, used_by_others=[0, 90]))
    with anyio.fail_after(PATIENCE_S):
        job = await service.execute_build(claim)
    assert (job.failure_kind, job.input_tokens, job.output_tokens) == ("budget", 6, 5)
    assert "midnight UTC" in (job.error_message or "")
    assert not runner.hanging.is_set()


async def test_a_day_that_is_used_to_its_end_and_no_further_stops_no_run(builds: Builds) -> None:
    claim = await builds.claimed()
    runner, runtime = ScriptedRunner(usage=Usage(6, 4, 0.0)), ScriptedRuntime()
    service = builds.service(runner, runtime, day_left=day_of(100, used_by_others=[89, 90]))
    async with previews(runtime):
        assert (await service.execute_build(claim)).status is Status.READY


async def test_a_day_that_cannot_be_asked_stops_no_run(builds: Builds) -> None:
    answers: list[Allowance] = [Allowance(tokens=1)]

    async def day_left(_: Job, __: Usage) -> Allowance:
        if answers:
            return answers.pop()
        raise RedisUnavailable("away")

    claim = await builds.claimed()
    runner, runtime = ScriptedRunner(), ScriptedRuntime()
    service = builds.service(runner, runtime, day_left=day_left)
    async with previews(runtime):
        assert (await service.execute_build(claim)).status is Status.READY
