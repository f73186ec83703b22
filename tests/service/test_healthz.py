"""What an instance still does, and says, while one of its servers does not answer."""

import anyio
import httpx
import pytest

from tests.service.instances import PATIENCE_S, Running, whole_stream
from tests.service.processes import children_of, command_of, frozen

pytestmark = pytest.mark.anyio


def server_named(name: str, running: Running) -> int:
    """The process of one of the instance's embedded servers."""
    home = str(running.settings.home)
    (found,) = [
        pid
        for pid in children_of(running.instance.pid)
        if name in command_of(pid) and home in command_of(pid)
    ]
    return found


async def test_both_servers_are_named_when_they_answer(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "redis": "ok", "postgres": "ok"}


@pytest.mark.parametrize(("server", "other"), [("postgres", "redis"), ("redis", "postgres")])
async def test_the_server_that_does_not_answer_is_named_until_it_does_again(
    client: httpx.AsyncClient, running: Running, server: str, other: str
) -> None:
    with frozen(server_named("valkey" if server == "redis" else server, running)):
        answer = await client.get("/healthz")
        assert answer.status_code == 503
        health = answer.json()
        assert (health["status"], health[other]) == ("failing", "ok")
        assert health[server] not in ("", "ok")
    with anyio.fail_after(PATIENCE_S):
        while (await client.get("/healthz")).status_code != 200:
            await anyio.lowlevel.checkpoint()


async def test_builds_go_on_without_postgres_and_are_listed_when_it_is_back(
    client: httpx.AsyncClient, running: Running
) -> None:
    before = (await client.post("/v1/jobs", json={"goal": "a list"})).json()["job_id"]
    await whole_stream(client, before)
    with frozen(server_named("postgres", running)):
        meanwhile = (await client.post("/v1/jobs", json={"goal": "a list"})).json()["job_id"]
        messages = await whole_stream(client, meanwhile)
        assert messages[-1].event == "JobReady"
    with anyio.fail_after(PATIENCE_S):
        while len((await client.get("/v1/jobs?status=ready")).json()["jobs"]) < 2:
            await anyio.lowlevel.checkpoint()
