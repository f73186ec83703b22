"""Which workspaces there are after a build: that of a READY one, and no other."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from eventstore import Appended, CommandHandler, RedisUnavailable
from schemas import Status
from schemas.commands import RequestCancel
from schemas.events import Limits
from tests.generator.builds import Builds, previews
from tests.generator.doubles import ScriptedRunner, ScriptedRuntime

pytestmark = pytest.mark.anyio


def workspaces(builds: Builds) -> list[Path]:
    """The folders that attempts at jobs have here."""
    return sorted((builds.home / "workspaces").glob("*/*"))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("here", [True, False], ids=["on the same machine", "on another"])
async def test_the_files_of_a_build_lie_where_ready_says_whoever_wrote_them(
    builds: Builds, here: bool
) -> None:
    first = await builds.claimed()
    runner, runtime = ScriptedRunner(), ScriptedRuntime(hang_on="install")
    async with builds.interrupted(builds.service(runner, runtime), first, runtime.hanging.wait):
        assert workspaces(builds) == [builds.home / "workspaces" / first.ref.job / "1"]
        written = files_in(workspaces(builds)[0])
    assert workspaces(builds) == []
    runtime.hang_on = None
    second = await builds.taken_over(first)
    if not here:
        builds.home = builds.home / "elsewhere"
    async with previews(runtime):
        job = await builds.service(runner, runtime).execute_build(second)
    assert (job.status, runner.runs) == (Status.READY, 1)
    assert [str(path) for path in workspaces(builds)] == [job.workspace_path]
    assert files_in(workspaces(builds)[0]) == written


async def test_what_a_worker_that_died_has_left_goes_when_its_job_has_ended(
    builds: Builds,
) -> None:
    claim = await builds.claimed()
    left = builds.home / "workspaces" / claim.ref.job / "0"
    left.mkdir(parents=True)
    (left / "half.py").write_text("")
    runtime = ScriptedRuntime()
    async with previews(runtime):
        job = await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    assert [str(path) for path in workspaces(builds)] == [job.workspace_path]


async def test_the_files_stay_when_the_answer_to_ready_was_lost(
    builds: Builds, handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.build.LOG_PATIENCE_S", 0.0)
    claim, append = await builds.claimed(), handler.store.append

    async def losing_the_last_answer(*args: Any, **options: Any) -> Appended:
        appended = await append(*args, **options)
        if options["build_number"] is not None:
            raise RedisUnavailable("it was away just then")
        return appended

    monkeypatch.setattr(handler.store, "append", losing_the_last_answer)
    runtime = ScriptedRuntime()
    async with previews(runtime):
        with pytest.raises(RedisUnavailable):
            await builds.service(ScriptedRunner(), runtime).execute_build(claim)
    job = await handler.load(claim.ref)
    assert job.status is Status.READY
    assert [str(path) for path in workspaces(builds)] == [job.workspace_path]
    assert "app.py" in files_in(workspaces(builds)[0])


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
async def test_nothing_is_left_of_a_job_that(
    builds: Builds, handler: CommandHandler, end: str
) -> None:
    claim = await builds.claimed(limits=Limits(max_repairs=0))
    runtime = ScriptedRuntime(exit_codes={"test": 1}, hang_on=None if end == "fails" else "test")
    service = builds.service(ScriptedRunner(), runtime)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.execute_build, claim)
            if end == "is cancelled":
                await runtime.hanging.wait()
                await handler.handle(claim.ref, RequestCancel("ann"))
    assert list((builds.home / "workspaces").iterdir()) == []


async def test_a_superseded_worker_takes_its_own_workspace_with_it_and_no_other(
    builds: Builds,
) -> None:
    first = await builds.claimed()
    runtime = ScriptedRuntime(hang_on="install")
    service = builds.service(ScriptedRunner(), runtime)
    async with builds.superseded(service, first, runtime.hanging.wait) as second:
        of_second = builds.home / "workspaces" / second.ref.job / "2"
        of_second.mkdir()
        runtime.go_on.set()
    assert workspaces(builds) == [of_second]
