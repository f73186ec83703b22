"""The code phase: a runner at work on what is there, its finished files kept as they come."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import anyio

from eventstore import patiently
from generator.beside import beside
from generator.budget import allowance, day_is_over, exhausted, least
from generator.build import LOG_PATIENCE_S, Build, day_spent
from generator.deadlines import deadline
from generator.drafts import changed
from generator.errors import BudgetSpent, GenerationError, NeedsReview, RunnerBusy, RunnerFailed
from generator.repairing import to_mend
from generator.retrying import retrying
from generator.runner import Allowance, RunnerTask
from generator.runner_thread import run_in_thread

DRAFT_PAUSE_S = 0.1
"""How long finished files wait for others, to be kept together: a quick runner is done by then."""
DRAFT_S = 2.0


async def write_code(build: Build) -> Mapping[str, bytes]:
    """The app's files as the runner has written them, from the base, the draft and the failure.

    `build.usage` says what that took. Raises `RunnerFailed`, `BudgetSpent`, and `NeedsReview` when
    a repair changed nothing.
    """
    base = await build.base_files()
    files = await retrying(build, "runner", partial(_run, build, base), again=_is_busy)
    build.check_budget()
    if not any(files.values()):
        raise RunnerFailed("the runner wrote no files: try another goal")
    if build.job.round > 1 and files == base:
        raise NeedsReview("the runner did not change anything to repair it")
    return files


def _is_busy(error: GenerationError) -> bool:
    return isinstance(error, RunnerBusy)


async def _run(build: Build, base: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """One run: it goes on from the draft, also from that of a run that failed before."""
    runner, job = build.runner, build.job
    assert runner is not None  # noqa: S101 - without one the simulated phases run
    if spent := exhausted(job, build.usage):
        raise BudgetSpent(f"nothing is left to write the app with: {spent}. Allow more")
    allowed = await _allowed(build)
    workspace = build.workspace()
    await workspace.clear()
    await workspace.load(build.draft.applied_to(base))
    build.begin_run()
    await build.noted({})
    task = RunnerTask(
        job=job.job,
        goal=job.goal,
        round=job.round,
        base_files=base,
        failure=to_mend(job),
        drafted=frozenset(build.draft.files),
        allowance=allowed,
    )

    async def run() -> None:
        with deadline(build.deadlines.code_s, f"the {runner.name} runner"):
            await build.used(await run_in_thread(runner, task, workspace, build))
            await build.transcript.flush()

    async def keep() -> None:
        await build.keep_draft(changed(base, workspace.files, build.usage))

    try:
        await beside(partial(_keep_drafts, build, keep), run)
    except anyio.get_cancelled_exc_class():
        if not build.is_cancelling:  # handed back, then: nothing of it is to be lost
            with anyio.move_on_after(DRAFT_S, shield=True):
                await keep()
        raise
    finally:
        build.draft = changed(base, workspace.files, build.usage)
    return workspace.files


async def _allowed(build: Build) -> Allowance:
    """What the run may use: what the job has left, and its tenant's day."""
    job = build.job
    allowed = allowance(job, build.usage, build.handler.clock())
    if build.day_left is None:
        return allowed
    left = await patiently(partial(build.day_left, job, build.usage), LOG_PATIENCE_S)
    if what := day_is_over(left):
        raise day_spent(job, what)
    return least(allowed, left)


async def _keep_drafts(build: Build, keep: Callable[[], Awaitable[None]]) -> None:
    """Keep what is finished, again and again, for who goes on when this worker cannot."""
    while True:
        await build.has_more.wait()
        await anyio.sleep(DRAFT_PAUSE_S)
        build.has_more = anyio.Event()
        await keep()
