"""The real SDK finds in the loopback server what it would find at E2B."""

from typing import Any

import anyio
import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    CommandExitException,
    SandboxNotFoundException,
    SandboxNotRunningException,
    TimeoutException,
)

from tests.e2b_server import E2BServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def account(e2b_server: E2BServer) -> dict[str, Any]:
    return {
        "api_key": e2b_server.api_key,
        "api_url": e2b_server.url,
        "sandbox_url": e2b_server.url,
        "debug": False,
    }


@pytest.fixture
async def sandbox(account: dict[str, Any]) -> AsyncSandbox:
    return await AsyncSandbox.create(timeout=60, envs={"COLOUR": "blue"}, **account)


async def test_a_command_has_the_home_and_the_environment_of_its_sandbox(
    sandbox: AsyncSandbox,
) -> None:
    result = await sandbox.commands.run("cd; pwd; id -un; echo $COLOUR")
    assert result.stdout == "/home/user\nuser\nblue\n"


async def test_a_sandbox_reaches_neither_this_machine_nor_its_network(
    e2b_server: E2BServer, sandbox: AsyncSandbox
) -> None:
    port = e2b_server.url.rpartition(":")[2]
    result = await sandbox.commands.run(
        f"ls /home /work 2>&1; (: </dev/tcp/127.0.0.1/{port}) 2>/dev/null || echo closed"
    )
    assert result.stdout.splitlines()[-1] == "closed"
    assert "user" in result.stdout


async def test_a_command_lives_on_without_a_listener_and_can_be_joined_again(
    sandbox: AsyncSandbox,
) -> None:
    handle = await sandbox.commands.run(
        "until [ -e go ]; do sleep 0.01; done; echo gone", background=True, timeout=0
    )
    await handle.disconnect()
    assert [process.pid for process in await sandbox.commands.list()] == [handle.pid]
    joined = await sandbox.commands.connect(handle.pid)
    await sandbox.files.write("/home/user/go", "")
    assert (await joined.wait()).stdout == "gone\n"
    assert await sandbox.commands.list() == []


async def test_a_signal_reaches_the_named_process_only(sandbox: AsyncSandbox) -> None:
    first = await sandbox.commands.run("exec sleep 1000", background=True, timeout=0)
    second = await sandbox.commands.run("exec sleep 1000", background=True, timeout=0)
    assert await first.kill() is True
    with pytest.raises(CommandExitException):
        await first.wait()
    assert first.exit_code == -1
    assert [process.pid for process in await sandbox.commands.list()] == [second.pid]
    assert await sandbox.commands.kill(99_999) is False
    await second.kill()


async def test_a_command_beyond_its_time_is_killed(sandbox: AsyncSandbox) -> None:
    handle = await sandbox.commands.run("exec sleep 1000", background=True, timeout=0.2)
    with pytest.raises((TimeoutException, CommandExitException)):  # whichever clock is first
        await handle.wait()
    with anyio.fail_after(10):
        while await sandbox.commands.list():  # noqa: ASYNC110 (no event tells it)
            await anyio.sleep(0.01)


async def test_folders_are_made_listed_and_removed(sandbox: AsyncSandbox) -> None:
    folder = "/home/user/a/b"
    assert await sandbox.files.make_dir(folder) is True
    assert await sandbox.files.make_dir(folder) is False
    await sandbox.files.write(f"{folder}/c.txt", "text")
    (entry,) = await sandbox.files.list(folder)
    assert (entry.name, entry.path, entry.size) == ("c.txt", f"{folder}/c.txt", 4)
    await sandbox.files.remove("/home/user/a")
    assert await sandbox.files.exists(folder) is False


async def test_no_path_leads_out_of_the_sandbox(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run("ln -s / /home/user/root")
    for path in ("/etc/passwd", "/home/user/../../etc/passwd", "/home/user/root/etc/passwd"):
        with pytest.raises(Exception, match="passwd"):
            await sandbox.files.read(path)


async def test_connecting_extends_a_life_and_never_shortens_it(
    sandbox: AsyncSandbox, account: dict[str, Any]
) -> None:
    ends_at = (await sandbox.get_info()).end_at
    await AsyncSandbox.connect(sandbox.sandbox_id, timeout=10, **account)
    assert (await sandbox.get_info()).end_at == ends_at
    await AsyncSandbox.connect(sandbox.sandbox_id, **account)
    assert (await sandbox.get_info()).end_at > ends_at
    await sandbox.set_timeout(30)
    assert (await sandbox.get_info()).end_at < ends_at


async def test_one_idempotency_key_makes_one_sandbox(
    e2b_server: E2BServer, account: dict[str, Any]
) -> None:
    made: list[str] = []

    async def create() -> None:
        made.append((await AsyncSandbox.create(idempotency_key="k1", **account)).sandbox_id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(create)
        tasks.start_soon(create)
    assert set(made) == set(e2b_server.living)
    assert len(e2b_server.living) == 1


async def test_envd_wants_the_token_of_the_sandbox(
    sandbox: AsyncSandbox, account: dict[str, Any]
) -> None:
    other = await AsyncSandbox.create(**account)
    headers = other.connection_config.sandbox_headers
    headers["X-Access-Token"] = sandbox._envd_access_token or ""
    response = await other._envd_api.get("/files?path=/home/user/a", headers=headers)
    assert response.status_code == 401


async def test_a_wrong_key_and_a_dead_sandbox_are_told_apart(
    sandbox: AsyncSandbox, account: dict[str, Any]
) -> None:
    with pytest.raises(AuthenticationException):
        await AsyncSandbox.create(**account | {"api_key": "wrong"})
    assert await sandbox.kill() is True
    assert await sandbox.kill() is False
    assert await sandbox.is_running() is False
    with pytest.raises(SandboxNotRunningException):
        await sandbox.commands.run("true")
    with pytest.raises(SandboxNotFoundException):
        await AsyncSandbox.connect(sandbox.sandbox_id, **account)


def test_nothing_lives_on_when_the_server_stops() -> None:
    async def use(server: E2BServer) -> None:
        sandbox = await AsyncSandbox.create(
            api_key=server.api_key, api_url=server.url, sandbox_url=server.url, debug=False
        )
        await sandbox.commands.run("setsid sleep 1000", background=True, timeout=0)

    with E2BServer() as server:
        anyio.run(use, server)
        (sandbox,) = server.living.values()
        home = sandbox.path("/home/user")
        assert home.is_dir()
    assert server.living == {}
    assert not home.exists()
