"""Budgets: what a run may use, and what happens when a job has used it."""

import pytest

from schemas import Phase, Status
from schemas.commands import Usage
from schemas.events import JobFailed, Limits
from tests.generator.builds import Builds, previews
from tests.generator.doubles import ScriptedRunner, ScriptedRuntime, mended_app

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
