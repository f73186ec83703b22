"""A whole instance whose sandboxes are E2B's: the real SDK, against the server on loopback."""

import json
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread
from typer.testing import CliRunner, Result

from schemas import Job, JobRef, Status
from service import wiring
from service.cli import app
from service.embedded import embedded_servers
from service.instance import LOCAL_TENANT
from service.settings import RunnerKind, Settings
from service.wiring import make_reaper, running
from tests.e2b_server import E2BServer, sandbox
from tests.e2b_server.fixture import e2b_server, e2b_session
from tests.service import secret_app
from tests.service.command_line import logging_of_its_own
from tests.service.instances import PATIENCE_S, Running, visitor

__all__ = ["e2b_server", "e2b_session"]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def instance(e2b_server: E2BServer, tmp_path: Path) -> AsyncIterator[Running]:
    """What `HEADRACE_SANDBOX=e2b` with the loopback server's variables gives."""
    settings = Settings.model_validate(
        {
            "home": tmp_path / "home",
            "runner": RunnerKind.TEMPLATE,
            "sandbox": "e2b",
            "E2B_API_KEY": e2b_server.api_key,
            "E2B_API_URL": e2b_server.url,
            "E2B_SANDBOX_URL": e2b_server.url,
            "e2b_preview_url": e2b_server.settings["preview_url"],
            "partitions": 2,
            "drain_s": 0,
            "reap_grace_s": 300,
        }
    )
    with embedded_servers(settings.home) as servers:
        async with running(settings, servers, port=0) as (started, log):
            yield Running(settings, servers, started, log)


async def ended(instance: Running, client: httpx.AsyncClient, job: str) -> Job:
    """The job as the log has it once its stream ends."""
    with anyio.fail_after(PATIENCE_S):
        async with client.stream("GET", f"/v1/jobs/{job}/stream") as response:
            await response.aread()
    return await instance.log.handler.load(JobRef(LOCAL_TENANT, job))


async def status_of(url: str | None) -> int:
    assert url is not None
    async with httpx.AsyncClient(trust_env=False, verify=False) as guest:
        return (await guest.get(url)).status_code


async def test_a_build_in_e2b_ends_ready_and_its_preview_can_be_ended_and_made_again(
    instance: Running, e2b_server: E2BServer
) -> None:
    async with visitor(instance.instance.url, instance.instance.key) as client:
        accepted = (await client.post("/v1/jobs", json={"goal": "a todo list for two"})).json()
        job = await ended(instance, client, accepted["job_id"])
        assert job.status is Status.READY, job.error_message
        assert await status_of(job.preview_url) == 200
        (made,) = e2b_server.living.values()
        assert made.sandbox_id == job.sandbox_id
        assert made.metadata == {
            "headrace": instance.log.store.lineage,
            "tenant": job.tenant,
            "job": job.job,
            "attempt": "1",
        }

        # Nobody needs it any more, and the reaper ends it, by what E2B lists.
        preview = "/v1/projects/default/builds/1/preview"
        after = (await client.delete(preview)).headers["Headrace-Position"]
        reaper = make_reaper(instance.settings, instance.servers, instance.log)
        with anyio.fail_after(20):
            while e2b_server.living:  # the instance's own reaper may be at it just now
                await reaper.reap()

        # Asked for again, a worker makes it anew from the build's files.
        assert (await client.get(preview, params={"after": after})).json()["preview"] == "expired"
        assert (await client.post(preview)).status_code == 202
        await ended(instance, client, job.job)
        state = (await client.get(preview)).json()
        assert state["preview"] == "running", state
        assert state["sandbox_id"] != job.sandbox_id
        assert await status_of(state["preview_url"]) == 200
        assert (await reaper.reap()).ended == 0

        # What lives there, in the words of the command line.
        shown = await to_thread.run_sync(partial(command, instance, "sandboxes", "--json"))
        (listed,) = json.loads(shown.output)
        assert (listed["sandbox_id"], listed["needed"]) == (state["sandbox_id"], True)
        assert (listed["build_version"], listed["provider"]) == ("build_v0_1", "e2b")
        table = await to_thread.run_sync(partial(command, instance, "sandboxes"))
        assert "its build's preview is running" in table.output
        none = await to_thread.run_sync(
            partial(command, instance, "sandboxes", "end", "--unneeded")
        )
        assert "There is none" in none.output
        await to_thread.run_sync(
            partial(command, instance, "sandboxes", "end", listed["sandbox_id"])
        )
        assert not e2b_server.living
        assert (await reaper.reap()).expired == 1
        assert (await client.get(preview)).json()["preview"] == "expired"
        unknown = partial(command, instance, "sandboxes", "end", "sb-1", exit_code=1)
        assert "no sandbox sb-1 lives here" in (await to_thread.run_sync(unknown)).output


def command(instance: Running, *arguments: str, exit_code: int = 0) -> Result:
    """A command as a person types it beside the instance that runs."""
    settings = instance.settings
    assert settings.e2b_api_key is not None
    environment = {
        "HEADRACE_HOME": str(settings.home),
        "HEADRACE_SANDBOX": "e2b",
        "HEADRACE_PARTITIONS": "2",
        "E2B_API_KEY": settings.e2b_api_key.get_secret_value(),
        "E2B_API_URL": settings.e2b_api_url,
        "E2B_SANDBOX_URL": settings.e2b_sandbox_url,
    }
    with logging_of_its_own():
        result = CliRunner().invoke(app, arguments, env=environment)
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Arguments and environment of each command that E2B was asked to run; apps tell a secret."""
    asked = []
    exec_ = sandbox.Sandbox.exec

    async def recorded(
        self: sandbox.Sandbox, argv: list[str], env: Mapping[str, str], cwd: str
    ) -> Any:
        asked.append((argv, dict(env)))
        return await exec_(self, argv, env, cwd)

    monkeypatch.setattr(sandbox.Sandbox, "exec", recorded)
    monkeypatch.setattr(wiring, "make_runner", secret_app.runner)
    return asked


async def test_a_secret_is_in_the_environment_of_the_apps_commands_and_in_no_argument(
    started: list[tuple[list[str], dict[str, str]]], instance: Running
) -> None:
    value = "e2b-4711-'quoted' $HOME\nof two lines"
    async with visitor(instance.instance.url, instance.instance.key) as client:
        await secret_app.set_secret(client, value)
        job = await secret_app.built(instance, client)
        assert job.status is Status.READY, job.error_message
        assert await secret_app.is_told(job, value)
    told = [argv[-1] for argv, env in started if env.get(secret_app.NAME) == value]
    assert len(told) == 3
    for script, of_app in zip(told, ("test -n", "server.told()", "exec python3"), strict=True):
        assert of_app in script
    assert not [argv for argv, _ in started if "4711" in str(argv)]
