"""Builds that go on from another: iterations, and restores."""

import pytest

from generator.runner import RunnerTask
from schemas import Status
from schemas.events import PhaseCompleted
from tests.generator.builds import Builds, previews
from tests.generator.doubles import MANIFEST, ScriptedRunner, ScriptedRuntime

pytestmark = pytest.mark.anyio

BASE = {"headrace.toml": MANIFEST.encode(), "app.py": b"# base\n", "logo.svg": b"\xff\x00"}


async def test_an_iteration_begins_with_the_files_of_its_base(builds: Builds) -> None:
    def app(task: RunnerTask) -> dict[str, str]:
        return {"app.py": f"# {task.goal}\n"}

    manifest = await builds.artifacts.put(BASE)
    claim = await builds.claimed(
        base_build=3, base_manifest=manifest, base_job="j3", goal="make it blue"
    )
    runner, runtime = ScriptedRunner(app=app), ScriptedRuntime()
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(claim)
    assert (job.status, job.base_build, job.build_number) == (Status.READY, 3, 1)
    (task,) = runner.tasks
    assert (task.base_files, runner.found[0], task.failure) == (BASE, BASE, None)
    scaffold = (await builds.told(claim, PhaseCompleted))[0]
    assert scaffold.evidence == {"base_files": 3, "base_build": 3}
    assert job.manifest is not None
    assert await builds.artifacts.get(job.manifest) == {**BASE, "app.py": b"# make it blue\n"}


async def test_a_restore_keeps_the_files_and_asks_no_runner(builds: Builds) -> None:
    manifest = await builds.artifacts.put(BASE)
    claim = await builds.claimed(
        base_build=3, base_manifest=manifest, base_job="j3", restore=True, goal="back to 3"
    )
    runner, runtime = ScriptedRunner(), ScriptedRuntime()
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(claim)
    assert (job.status, job.manifest, runner.runs) == (Status.READY, manifest, 0)
    code = (await builds.told(claim, PhaseCompleted))[1]
    assert code.evidence["restored_build"] == 3
    assert runtime.made[0].app_files == BASE


async def test_a_restored_build_that_fails_its_checks_is_not_repaired(builds: Builds) -> None:
    manifest = await builds.artifacts.put(BASE)
    claim = await builds.claimed(base_build=3, base_manifest=manifest, restore=True)
    runner = ScriptedRunner()
    runtime = ScriptedRuntime(exit_codes={"test": 1})
    job = await builds.service(runner, runtime).execute_build(claim)
    assert (job.failure_kind, runner.runs) == ("needs_review", 0)
    assert "a restored build keeps its files" in (job.error_message or "")


async def test_a_base_that_is_gone_says_so(builds: Builds) -> None:
    claim = await builds.claimed(base_build=3, base_manifest="0" * 64)
    job = await builds.service(ScriptedRunner()).execute_build(claim)
    assert (job.failure_kind, job.failed_phase) == ("artifact", "scaffold")
