"""Repairs: what the runner is told, what is done again, and when it is given up."""

from collections.abc import Mapping

import pytest

from generator.errors import CheckFailed
from generator.repairing import fingerprint
from generator.runner import RunnerTask
from schemas import Phase, Status
from schemas.events import ChecksFailed, JobFailed, Limits, PhaseCompleted, SandboxCreated
from tests.generator.builds import Builds, previews
from tests.generator.doubles import (
    MANIFEST,
    ScriptedRunner,
    ScriptedRuntime,
    ScriptedSandbox,
    mended_app,
)

pytestmark = pytest.mark.anyio


def fails_once(command: str) -> ScriptedRuntime:
    """The command ends with 1 until the app is of the second round."""

    def exit_code(sandbox: ScriptedSandbox) -> int:
        return 0 if b"round 2" in sandbox.files["app.py"] else 1

    return ScriptedRuntime(exit_codes={command: exit_code})


@pytest.mark.parametrize(("command", "phase"), [("install", Phase.DEPS), ("test", Phase.CHECKS)])
async def test_a_failed_command_goes_back_to_the_runner_with_what_it_printed(
    builds: Builds, command: str, phase: Phase
) -> None:
    claim = await builds.claimed()
    runner, runtime = ScriptedRunner(app=mended_app), fails_once(command)
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(claim)
    assert (job.status, job.round, job.build_number) == (Status.READY, 2, 1)
    (failed,) = await builds.told(claim, ChecksFailed)
    assert (failed.phase, failed.round, failed.command, failed.exit_code) == (phase, 1, command, 1)
    first, second = runner.tasks
    assert (first.round, first.failure) == (1, None)
    assert second.round == 2
    assert second.failure is not None
    assert (second.failure.command, second.failure.exit_code) == (command, 1)
    assert second.failure.output == f"{command} output"
    assert "ended with exit code 1" in second.failure.message
    assert second.base_files["app.py"] == b"# a list, round 1\n"
    assert runner.found[1] == second.base_files


async def test_an_app_that_declares_no_start_goes_back_to_the_runner_before_any_sandbox_is_made(
    builds: Builds,
) -> None:
    made = []

    def app(task: RunnerTask) -> Mapping[str, str]:
        made.append(len(runtime.made))
        without = MANIFEST.replace("start =", "begin =") if task.round == 1 else MANIFEST
        return {"headrace.toml": without, "app.py": ""}

    claim = await builds.claimed()
    runner, runtime = ScriptedRunner(app=app), ScriptedRuntime()
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(claim)
    assert (job.status, job.round, made) == (Status.READY, 2, [0, 0])
    (failed,) = await builds.told(claim, ChecksFailed)
    assert (failed.phase, failed.round, failed.command) == (Phase.DEPS, 1, "read headrace.toml")
    assert "lacks the command 'start'" in failed.message
    second = runner.tasks[1]
    assert second.failure is not None
    assert "lacks the command 'start'" in second.failure.message
    assert second.base_files["headrace.toml"] == MANIFEST.replace("start =", "begin =").encode()


@pytest.mark.parametrize("manifest", ["", "[commands", "[commands]\ntest = 7"])
async def test_an_app_that_goes_on_declaring_nothing_is_given_up(
    builds: Builds, manifest: str
) -> None:
    claim, rounds = await builds.claimed(), []

    def app(task: RunnerTask) -> Mapping[str, str]:
        rounds.append(task.round)
        return {"headrace.toml": manifest, "app.py": str(task.round)}

    runtime = ScriptedRuntime()
    job = await builds.service(ScriptedRunner(app=app), runtime).execute_build(claim)
    assert (job.status, job.failure_kind, rounds) == (Status.FAILED, "needs_review", [1, 2])
    assert not runtime.made


async def test_in_a_repair_only_what_changed_is_written_and_what_went_is_removed(
    builds: Builds,
) -> None:
    def app(task: RunnerTask) -> Mapping[str, str]:
        changing = {"old.py": ""} if task.round == 1 else {"new/er.py": "x"}
        return {**mended_app(task), "same.py": "same", **changing}

    claim = await builds.claimed()
    runner, runtime = ScriptedRunner(app=app, deletes=("old.py",)), fails_once("test")
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(claim)
    assert job.status is Status.READY
    (sandbox,) = runtime.made
    assert sandbox.app_files == {
        "headrace.toml": MANIFEST.encode(),
        "app.py": b"# a list, round 2\n",
        "same.py": b"same",
        "new/er.py": b"x",
    }
    assert sandbox.emptied == 1
    patched = [done for done in await builds.told(claim, PhaseCompleted) if done.phase == "deps"]
    assert [(one.evidence["files_written"], one.evidence["files_deleted"]) for one in patched] == [
        (4, 0),
        (2, 1),
    ]
    assert len(await builds.told(claim, SandboxCreated)) == 1


@pytest.mark.parametrize(
    ("install", "changed", "installs"),
    [
        ("pip install -r requirements.txt", "app.py", 1),
        ("pip install -r requirements.txt", "requirements.txt", 2),
        ("pip install -r requirements.txt", "headrace.toml", 2),
        ("pip install .", "app.py", 2),
        ("make", "app.py", 2),
    ],
)
async def test_a_repair_installs_again_when_what_it_depends_on_has_changed(
    builds: Builds, install: str, changed: str, installs: int
) -> None:
    def app(task: RunnerTask) -> Mapping[str, str]:
        again = install + (" --quiet" if changed == "headrace.toml" and task.round == 2 else "")
        files = {
            "headrace.toml": MANIFEST.replace('"install"', f'"{again}"'),
            "app.py": "",
            "requirements.txt": "flask\n",
        }
        if task.round == 2 and changed != "headrace.toml":
            files[changed] += "uvicorn\n"
        return files

    claim = await builds.claimed()
    tests: list[str] = []

    def fail_first(sandbox: ScriptedSandbox) -> int:
        tests.append(sandbox.sandbox_id)
        return len(tests) == 1

    runtime = ScriptedRuntime(exit_codes={"test": fail_first})
    async with previews(runtime):
        job = await builds.service(ScriptedRunner(app=app), runtime).execute_build(claim)
    assert job.status is Status.READY
    (sandbox,) = runtime.made
    assert len([one for one in sandbox.commands if one.startswith(install)]) == installs


async def test_the_same_failure_twice_ends_the_repairs(builds: Builds) -> None:
    claim = await builds.claimed()
    runner = ScriptedRunner(app=mended_app)
    runtime = ScriptedRuntime(exit_codes={"test": 1})
    job = await builds.service(runner, runtime).execute_build(claim)
    assert (job.status, job.failure_kind, runner.runs) == (Status.FAILED, "needs_review", 2)
    assert "the same failure came back" in (job.error_message or "")
    assert not runtime.living


async def test_after_as_many_repairs_as_are_allowed_a_person_is_told_what_was_tried(
    builds: Builds,
) -> None:
    claim = await builds.claimed(limits=Limits(max_repairs=2))
    runner, codes = ScriptedRunner(app=mended_app), iter((3, 4, 5, 6))
    runtime = ScriptedRuntime(exit_codes={"test": lambda _: next(codes)})
    job = await builds.service(runner, runtime).execute_build(claim)
    assert runner.runs == 3
    (failed,) = await builds.told(claim, JobFailed)
    assert (failed.kind, failed.phase) == ("needs_review", Phase.CHECKS)
    assert "2 repairs were tried" in failed.message
    for number, code in ((1, 3), (2, 4), (3, 5)):
        assert f"round {number}: the app's own tests fail: `test` ended with exit code {code}" in (
            failed.message
        )
    assert "ask again" in failed.message
    assert (job.input_tokens, job.repair_input_tokens) == (30, 20)


async def test_with_no_repair_allowed_the_first_failure_is_the_end(builds: Builds) -> None:
    claim = await builds.claimed(limits=Limits(max_repairs=0))
    runner = ScriptedRunner(app=mended_app)
    job = await builds.service(runner, fails_once("test")).execute_build(claim)
    assert (job.failure_kind, runner.runs) == ("needs_review", 1)


async def test_a_repair_that_changes_nothing_is_not_tried_out(builds: Builds) -> None:
    claim = await builds.claimed()
    runtime = ScriptedRuntime(exit_codes={"test": 1})
    job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    assert (job.failure_kind, job.failed_phase) == ("needs_review", Phase.CODE)
    assert "did not change anything" in (job.error_message or "")
    (sandbox,) = runtime.made
    assert sandbox.commands == ["install", "test"]


def failed(output: str, message: str = "the app's own tests fail") -> CheckFailed:
    return CheckFailed(message, command="test", exit_code=1, output=output)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("FAILED (errors=1) in 0.123s", "FAILED (errors=1) in 1.5s"),
        ("Ran 4 tests in 12 ms", "Ran 4 tests in 7 ms"),
        ("2026-11-29T12:00:01.5Z boom", "2026-11-30T01:10:59Z boom"),
        ("12:00:01,123 boom", "23:10:59,001 boom"),
        ("<App object at 0x7f5c5b437d50>", "<App object at 0x7faa00000010>"),
        ("pid 123 died", "pid 4567 died"),
        ("[pid=12] died", "[pid=999] died"),
        ("/tmp/tmpab12/test.db is locked", "/tmp/tmpzz98/test.db is locked"),
        ("connect 127.0.0.1:45123 refused", "connect 127.0.0.1:39001 refused"),
        ("marker 5f1d7a84db00d2fc", "marker 66b1132a0173910b"),
        ("id f5995406-b3e1-4c50-bb28-20b0a2a32827", "id 019aa0a0-0000-7000-8000-000000000001"),
    ],
)
def test_what_differs_by_chance_makes_no_other_failure(one: str, other: str) -> None:
    assert fingerprint(failed(one)) == fingerprint(failed(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("expected 3, got 4", "expected 3, got 5"),
        ("app.py:12: NameError: total", "app.py:13: NameError: total"),
        ("no module named flask", "no module named uvicorn"),
        ("/healthz answered 500", "/healthz answered 404"),
    ],
)
def test_what_differs_in_the_matter_is_another_failure(one: str, other: str) -> None:
    assert fingerprint(failed(one)) != fingerprint(failed(other))
    assert fingerprint(failed("", one)) != fingerprint(failed("", other))
