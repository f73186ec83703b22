"""Erasing through the whole path, beside an instance that goes on working."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from uuid6 import uuid7

from eventstore import JobEvent, follow
from generator import ArtifactStore
from generator.errors import SandboxUnavailable
from projector import rebuild, verify
from schemas import TERMINAL_TYPES, Job, JobRef, Status
from schemas.commands import RequestBuild
from service.client import Client
from service.erasing import Erasure, Survey
from service.secret_keys import SecretRef
from service.settings import RunnerKind
from service.wiring import make_artifacts, make_sandbox_runtime, make_secrets, opened_log
from tests.histories import new
from tests.projector.contents import contents
from tests.projector.spoiling import damaged
from tests.remains import found_in_files, found_in_postgres, found_in_redis
from tests.service.command_line import in_this_process_on
from tests.service.homes import furnish
from tests.service.instances import PATIENCE_S, Running, running_instance

pytestmark = pytest.mark.anyio

SECRET = "Mustermann"
GOAL = f"a todo list for Erika {SECRET}"
STEPS = ("_end_previews", "_remove_workspaces", "_erase_some", "_erase_events")


class Killed(Exception):
    """What ends an erasure in its middle."""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_instance(tmp_path, RunnerKind.TEMPLATE) as one:
        yield one


async def built(running: Running, tenant: str, project: str, goal: str) -> Job:
    """A build of this goal, once it is READY."""
    ref = JobRef(tenant, str(uuid7()))
    request = RequestBuild(tenant=tenant, user_id="erika", project_id=project, goal=goal)
    await running.log.handler.handle(ref, request, command_id=f"ask-{ref.job}")
    with anyio.fail_after(PATIENCE_S):
        async with aclosing(follow(running.log.hub, ref)) as entries:
            async for entry in entries:
                if isinstance(entry, JobEvent) and entry.event.type in TERMINAL_TYPES:
                    break
    job = await running.log.handler.load(ref)
    assert job.status is Status.READY
    return job


def erasure(running: Running, tenant: str, project: str | None) -> Erasure:
    return Erasure(
        running.log,
        make_artifacts(running.settings),
        tenant=tenant,
        project=project,
        workspaces=running.settings.home / "workspaces",
        end_sandbox=make_sandbox_runtime(running.settings).kill,
        is_embedded=True,
    )


async def everywhere(running: Running) -> dict[str, list[str]]:
    """Where the secret stands: in keys, in tables, in files."""
    home = running.settings.home
    found = {
        "redis": await found_in_redis(running.log.store.redis, SECRET),
        "postgres": await found_in_postgres(running.log.engine, SECRET),
        "files": found_in_files(
            SECRET, home / "artifacts", home / "workspaces", home / "valkey" / "appendonlydir"
        ),
    }
    return {place: names for place, names in found.items() if names}


async def gone_from_files(running: Running) -> None:
    """Return when Redis has removed its old files, which it does in a thread of its own."""
    folder = running.settings.home / "valkey" / "appendonlydir"
    with anyio.fail_after(PATIENCE_S):
        while found_in_files(SECRET, folder):
            await anyio.lowlevel.checkpoint()


async def files_of(running: Running, job: Job) -> dict[str, bytes]:
    assert job.manifest is not None
    return await ArtifactStore.in_folder(running.settings.home / "artifacts").get(job.manifest)


async def test_an_erased_project_is_gone_to_the_last_byte_and_all_else_is_as_it_was(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [await built(running, "acme", "diary", GOAL) for _ in range(2)]
    beside = await built(running, "acme", "shop", "a todo list for two people")
    stranger = await built(running, "globex", "diary", "a poll about lunch")
    others = {job.job: await files_of(running, job) for job in (beside, stranger)}
    assert (await everywhere(running)).keys() == {"redis", "postgres", "files"}
    one = erasure(running, "acme", "diary")
    found = await one.survey()
    assert (set(found.ended), found.living) == ({job.job for job in ours}, ())
    before = await contents(running.log.engine)

    # Ended in the middle, behind each step, and once more begun.
    for step in STEPS:
        done = getattr(Erasure, step)

        async def ends(self: Erasure, *args: Any, done: Any = done) -> Any:
            await done(self, *args)
            raise Killed

        def ends_at_once(self: Erasure, *args: Any, done: Any = done) -> Any:
            done(self, *args)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Erasure, step, ends_at_once if step == "_remove_workspaces" else ends)
            with pytest.raises(Killed):
                await one.run(found.ended)
        assert (await verify(running.log.engine))[1] == []

    erased = await one.run(found.ended)
    assert (erased.jobs, erased.commands) == (2, 2)
    assert (erased.left_blobs, erased.left_previews, erased.is_rewritten) == (0, 0, True)
    await gone_from_files(running)
    assert await everywhere(running) == {}

    for job in (beside, stranger):
        assert await files_of(running, job) == others[job.job]
        assert await running.log.handler.load(JobRef(job.tenant, job.job)) == job
    after = await contents(running.log.engine)
    for name in ("projects", "daily_stats"):
        assert after[name] == before[name]
    assert (await verify(running.log.engine))[1] == []
    assert (await rebuild(running.log.engine)).differing == ()

    again = await one.run(found.ended)
    assert (again.events, again.blobs, again.commands) == (0, 0, 0)
    async with opened_log(running.settings, running.servers) as anew:
        assert await anew.store.last_build_number("acme", "diary") == 2
    assert (await built(running, "acme", "diary", "a todo list")).build_number == 3


async def test_jobs_that_arrive_after_the_survey_are_not_touched(running: Running) -> None:
    await built(running, "acme", "diary", GOAL)
    one = erasure(running, "acme", None)
    found = await one.survey()
    late = await built(running, "acme", "diary", GOAL)
    erased = await one.run(found.ended)
    assert erased.jobs == 1
    assert await running.log.handler.load(JobRef("acme", late.job)) == late
    assert await files_of(running, late)


async def test_a_job_that_cannot_be_read_and_has_not_ended_is_ended_and_erased(
    tmp_path: Path,
) -> None:
    async with running_instance(tmp_path, RunnerKind.NONE) as running:
        store = running.log.store
        job = JobRef("acme", str(uuid7()))
        request = RequestBuild(
            tenant="acme", user_id="erika", project_id="diary", goal=GOAL, tier="free"
        )
        await store.work.set_cap("acme", 0)  # it stays in the queue
        await running.log.handler.handle(job, request)
        await store.append(job, "diary", new([damaged()], job=job.job, after=1), expected_version=1)
        one = erasure(running, "acme", None)
        found = await one.survey()
        assert (found.ended, found.living, found.unreadable) == ((), (), (job.job,))
        erased = await one.run(found.ended, unreadable=found.unreadable)
        assert (erased.jobs, erased.events) == (1, 3)
        assert await store.work.waiting("acme") == 0
        await gone_from_files(running)
        assert await everywhere(running) == {}
        assert (await verify(running.log.engine))[1] == []
        assert (await one.survey()).ended == (job.job,)


async def test_a_preview_that_the_provider_refuses_to_end_is_counted_and_all_else_is_erased(
    running: Running,
) -> None:
    job = await built(running, "acme", "diary", GOAL)
    one = erasure(running, "acme", None)

    async def refuse(sandbox_id: str) -> bool:
        raise SandboxUnavailable(f"{sandbox_id} is not to be had")

    one._end_sandbox = refuse
    found = await one.survey()
    with capture_logs() as logs:
        erased = await one.run(found.ended)
    assert (erased.jobs, erased.left_previews) == (1, 1)
    (said,) = [entry for entry in logs if entry["event"] == "preview_not_ended"]
    assert said["sandbox_id"] == job.sandbox_id
    await gone_from_files(running)
    assert await everywhere(running) == {}


async def test_secrets_of_the_project_go_with_it_and_those_of_others_stay(
    running: Running,
) -> None:
    secrets = make_secrets(running.settings, running.servers, running.log)
    await built(running, "acme", "diary", GOAL)
    for tenant, project in (("acme", "diary"), ("acme", "shop"), ("globex", "diary")):
        await secrets.put(SecretRef(tenant, project, "TOKEN"), "x")
    one = erasure(running, "acme", "diary")
    found = await one.survey()
    assert found.secrets == 1
    assert (await one.run(found.ended)).secrets == 1
    assert await secrets.names("acme", "diary") == []
    assert len(await secrets.names("acme", "shop")) == 1

    # Those of a project without a job, too.
    rest = erasure(running, "acme", None)
    found = await rest.survey()
    assert (len(found.ended), found.secrets) == (1, 1)
    shop = erasure(running, "acme", "shop")
    assert await shop.survey() == Survey((), secrets=1)
    assert (await shop.run(())).secrets == 1
    assert await shop.survey() == Survey(())
    assert len(await secrets.names("globex", "diary")) == 1


def test_the_command_erases_a_demo_and_says_what_it_cannot_reach(tmp_path: Path) -> None:
    anyio.run(furnish, tmp_path)
    with in_this_process_on(tmp_path) as shell:
        assert shell.run("demo", GOAL, "--once").returncode == 0
        refused = shell.run("replay", "erase", "--tenant", "local")
        assert refused.returncode == 1
        assert "say --yes" in refused.stderr
        erased = shell.json("replay", "erase", "--tenant", "local", "--yes")
        assert (erased["jobs"], erased["aof_rewritten"]) == (1, True)
        assert erased["events"] >= 10
        assert erased["blobs"] > 1
        assert any("backups of Postgres" in one for one in erased["beyond_reach"])
        assert found_in_files(SECRET, tmp_path / "artifacts", tmp_path / "workspaces") == []
        assert shell.run("replay", "verify").returncode == 0
        again = shell.run("replay", "erase", "--tenant", "local", "--yes")
        assert "0 events not erased before" in again.stdout
        nobody = shell.run("replay", "erase", "--tenant", "nobody", "--yes")
        assert nobody.returncode == 1
        assert "there is nothing of tenant nobody to erase" in nobody.stderr


def test_a_job_that_lives_is_named_and_nothing_is_erased(tmp_path: Path) -> None:
    async def leave_one_waiting() -> None:
        async with running_instance(tmp_path, RunnerKind.NONE) as running:
            await running.log.store.work.set_cap("local", 0)
            async with Client(running.instance.url, running.instance.key) as client:
                await client.submit(GOAL, project="diary")

    anyio.run(leave_one_waiting)
    with in_this_process_on(tmp_path, HEADRACE_PARTITIONS="2") as shell:
        done = shell.run("replay", "erase", "--tenant", "local", "--yes")
        assert done.returncode == 2
        assert "1 of these jobs has not ended: cancel it first." in done.stderr
        assert "Nothing was erased." in done.stderr
