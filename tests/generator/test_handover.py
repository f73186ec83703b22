"""A change in place: the base's living sandbox, and its preview, go to the job that changes it."""

from datetime import timedelta
from typing import Any

import pytest

from generator.reaper import judge
from generator.runner import RunnerTask
from generator.sandbox import SandboxInfo
from schemas import Job, JobRef, Preview, Status
from schemas.commands import ExpirePreview
from schemas.events import PhaseCompleted
from tests.generator.builds import TENANT, Builds, previews
from tests.generator.doubles import MANIFEST, ScriptedRunner, ScriptedRuntime
from tests.generator.test_reaper import Reaped

pytestmark = pytest.mark.anyio


def app(task: RunnerTask) -> dict[str, str]:
    return {"headrace.toml": MANIFEST, "app.py": f"# {task.goal}\n", "same.txt": "as ever"}


async def built(builds: Builds, runtime: ScriptedRuntime, **request: Any) -> Job:
    claim = await builds.claimed(**request)
    async with previews(runtime):
        return await builds.service(ScriptedRunner(app=app), runtime).execute_build(claim)


def change_of(base: Job, **more: Any) -> dict[str, Any]:
    return {
        "goal": "bluer",
        "base_build": base.build_number,
        "base_manifest": base.manifest,
        "base_job": base.job,
        "in_place": True,
        **more,
    }


async def test_a_change_in_place_patches_the_sandbox_of_its_base_and_takes_its_preview(
    builds: Builds,
) -> None:
    runtime = ScriptedRuntime()
    base = await built(builds, runtime)
    changed = await built(builds, runtime, **change_of(base))
    assert (changed.status, changed.build_number) == (Status.READY, 2)
    assert (changed.sandbox_id, changed.preview) == (base.sandbox_id, Preview.RUNNING)
    assert len(runtime.made) == 1
    (sandbox,) = runtime.made
    assert sandbox.app_files["app.py"] == b"# bluer\n"
    base = await builds.handler.load(JobRef(TENANT, base.job))
    assert (base.preview, base.preview_url, base.sandbox_id) == (Preview.EXPIRED, None, None)
    assert base.handed_over == ((sandbox.sandbox_id, changed.job),)


async def test_of_a_sandbox_that_is_taken_over_only_what_differs_is_written(builds: Builds) -> None:
    runtime = ScriptedRuntime()
    base = await built(builds, runtime)
    claim = await builds.claimed(**change_of(base))
    async with previews(runtime):
        await builds.service(ScriptedRunner(app=app), runtime).execute_build(claim)
    deps = (await builds.told(claim, PhaseCompleted))[2]
    assert (deps.evidence["files_written"], deps.evidence["files_deleted"]) == (1, 0)


async def test_without_being_asked_a_change_leaves_the_preview_of_its_base_alone(
    builds: Builds,
) -> None:
    runtime = ScriptedRuntime()
    base = await built(builds, runtime)
    changed = await built(builds, runtime, **change_of(base, in_place=False))
    assert changed.sandbox_id != base.sandbox_id
    base = await builds.handler.load(JobRef(TENANT, base.job))
    assert base.preview is Preview.RUNNING


async def test_of_two_changes_in_place_one_gets_the_sandbox_and_the_other_a_new_one(
    builds: Builds,
) -> None:
    runtime = ScriptedRuntime()
    base = await built(builds, runtime)
    first = await built(builds, runtime, **change_of(base))
    second = await built(builds, runtime, **change_of(base))
    assert (first.status, second.status) == (Status.READY, Status.READY)
    assert first.sandbox_id == base.sandbox_id
    assert second.sandbox_id not in (None, base.sandbox_id)
    assert len(runtime.living) == 2


@pytest.mark.parametrize("ended", ["expired", "gone"])
async def test_a_base_without_a_living_sandbox_costs_the_change_a_new_one(
    ended: str, builds: Builds
) -> None:
    runtime = ScriptedRuntime()
    base = await built(builds, runtime)
    if ended == "expired":
        await builds.handler.handle(JobRef(TENANT, base.job), ExpirePreview("time-out"))
    await runtime.kill(base.sandbox_id or "")
    changed = await built(builds, runtime, **change_of(base))
    assert changed.status is Status.READY
    assert changed.sandbox_id != base.sandbox_id
    base = await builds.handler.load(JobRef(TENANT, base.job))
    assert base.handed_over == ()


async def test_a_change_in_place_that_fails_leaves_no_sandbox_and_its_base_can_be_asked_for_again(
    builds: Builds,
) -> None:
    runtime = ScriptedRuntime()
    base = await built(builds, runtime)
    runtime.exit_codes = {"test": 1}
    changed = await built(builds, runtime, **change_of(base))
    assert (changed.status, runtime.living) == (Status.FAILED, {})
    base = await builds.handler.load(JobRef(TENANT, base.job))
    assert (base.status, base.preview) == (Status.READY, Preview.EXPIRED)
    assert base.manifest is not None


async def test_the_reaper_spares_a_sandbox_that_another_job_has_now(builds: Builds) -> None:
    runtime = ScriptedRuntime()
    base = await built(builds, runtime)
    changed = await built(builds, runtime, **change_of(base))
    reaped = Reaped(builds, runtime)
    reaped.now += timedelta(minutes=10)
    (found,) = await reaped.reaper.look()
    assert (found.needed, found.ref) == (True, JobRef(TENANT, changed.job))
    # By the job in its metadata alone it would be one that nobody needs.
    base = await builds.handler.load(JobRef(TENANT, base.job))
    info: SandboxInfo = found.info
    assert not judge(info, base, now=reaped.now, grace=timedelta(minutes=5)).needed
