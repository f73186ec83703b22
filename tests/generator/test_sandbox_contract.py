"""What every runtime of sandboxes promises, one test for each sentence of `generator/sandbox.py`.

Whether a process lives is told by a lock that it holds: no clock, and true across namespaces.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest

from generator.errors import BadPath, CommandTimeout, SandboxGone, SandboxUnavailable
from generator.sandbox import (
    OUTPUT_TAIL_BYTES,
    PREVIEW_PORT,
    PROJECT_DIR,
    Sandbox,
    SandboxRuntime,
    Stream,
)
from generator.sandboxes.e2b import E2BRuntime
from generator.sandboxes.local import LocalRuntime
from tests.e2b_server import E2BServer

pytestmark = pytest.mark.anyio

HOLD_LOCK = "exec 9>lock; flock 9; sleep 1000 & echo locked; wait"
"""Two processes that hold a lock for as long as one of them lives."""

IS_LOCKED = "flock --nonblock lock true"
IS_FREE = "flock --timeout 5 lock true"
"""A killed process lets go of its locks a moment after the signal, hence not `--nonblock`."""

SERVE = f"exec python3 -u -m http.server {PREVIEW_PORT}"

BAD_IDS = ["", ".", "../etc", "a/b", "a b", "ü", "a?b", "x" * 65]


@pytest.fixture(params=["local", "e2b"])
async def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SandboxRuntime]:
    run_dir = Path(tempfile.mkdtemp(prefix="hr-"))  # short: a unix socket's path has 107 bytes
    if request.param == "local":
        request.getfixturevalue("isolation_is_possible")
        made: SandboxRuntime = LocalRuntime(state_dir=tmp_path / "sandboxes", run_dir=run_dir)
    else:
        made = _e2b(request.getfixturevalue("e2b_server"))
    yield made
    for info in await made.list({}):
        await made.kill(info.sandbox_id)
    shutil.rmtree(run_dir)


def _e2b(server: E2BServer) -> SandboxRuntime:
    return E2BRuntime(server.api_key, domain="e2b.test", **server.settings)


@pytest.fixture
async def sandbox(runtime: SandboxRuntime) -> Sandbox:
    return await runtime.create(metadata={"job": "j1"}, timeout_s=60)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Asks again until the answer is yes."""
    with anyio.fail_after(10):
        while not await condition():  # noqa: ASYNC110 (no event tells it)
            await anyio.sleep(0.01)


async def answer(url: str) -> str | None:
    """What a preview says, None while nobody serves there."""
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        try:
            response = await client.get(url)
        except httpx.TransportError:
            return None
    return response.text if response.is_success else None


# Making


async def test_what_was_prepared_is_nobodys_until_it_is_made(runtime: SandboxRuntime) -> None:
    await runtime.prepare()
    await runtime.prepare()
    assert await runtime.list({}) == []
    made = [await runtime.create(metadata={"job": job}, timeout_s=60) for job in ("j1", "j2")]
    await runtime.prepare()
    await runtime.close()
    for job, sandbox in zip(("j1", "j2"), made, strict=True):
        (info,) = await runtime.list({"job": job})
        assert info.sandbox_id == sandbox.sandbox_id
        assert (await sandbox.run("true", timeout_s=20)).exit_code == 0
    assert len(await runtime.list({})) == 2


# Files


@pytest.mark.parametrize(
    "content",
    [b"", b"text\n", b"\r\n--\r\n\n\r", bytes(range(256)) * 3, "grüße 🌊".encode()],
    ids=["empty", "text", "line ends", "binary", "unicode"],
)
async def test_a_file_is_read_back_byte_for_byte(sandbox: Sandbox, content: bytes) -> None:
    await sandbox.write_files({"file.bin": content})
    assert await sandbox.read_file("file.bin") == content


async def test_files_are_found_under_their_names_by_a_command(sandbox: Sandbox) -> None:
    files = {
        "plain.txt": b"1",
        "deep/er/nested.txt": b"2",
        "deep/other.txt": b"3",
        "grün 🌊/ünï.txt": b"4",
        "with space.txt": b"5",
        ".hidden": b"6",
        "quo\"te's.txt": b"7",
        "-n": b"8",
        "a%22b+c&d=e;$f.txt": b"9",
    }
    await sandbox.write_files(files)
    assert {path: await sandbox.read_file(path) for path in files} == files
    listed = await sandbox.run("find . -type f", timeout_s=10)
    assert set(listed.output.splitlines()) == {f"./{path}" for path in files}


async def test_many_files_and_large_ones_arrive_whole(sandbox: Sandbox) -> None:
    large = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(300_000))
    files = {f"many/{number}.txt": b"%d" % number for number in range(250)} | {"large": large}
    await sandbox.write_files(files)
    counted = await sandbox.run("ls many | wc -l; sha256sum <large", timeout_s=10)
    assert counted.output.split()[:2] == ["250", hashlib.sha256(large).hexdigest()]


async def test_a_written_file_replaces_what_was_there(sandbox: Sandbox) -> None:
    await sandbox.write_files({"file.txt": b"long content", "other.txt": b"stays"})
    await sandbox.write_files({"file.txt": b"short"})
    assert await sandbox.read_file("file.txt") == b"short"
    assert await sandbox.read_file("other.txt") == b"stays"


async def test_a_shell_script_is_executable_and_other_files_are_not(sandbox: Sandbox) -> None:
    script = b"#!/bin/sh\necho ran\n"
    await sandbox.write_files({"bin/it's mine.sh": script, "plain.txt": script})
    assert (await sandbox.run("bin/it\\'s\\ mine.sh", timeout_s=10)).output == "ran\n"
    assert (await sandbox.run("test -x plain.txt", timeout_s=10)).exit_code == 1


async def test_writing_nothing_changes_nothing(sandbox: Sandbox) -> None:
    await sandbox.write_files({})
    assert (await sandbox.run("ls -A", timeout_s=10)).output == ""


async def test_reading_what_is_not_there_raises_file_not_found(sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        await sandbox.read_file("missing.txt")


async def test_what_a_command_wrote_can_be_read(sandbox: Sandbox) -> None:
    await sandbox.run("mkdir out && printf made >out/it", timeout_s=10)
    assert await sandbox.read_file("out/it") == b"made"


@pytest.mark.parametrize("path", ["../out.txt", "/etc/passwd", "a/../../b", "", "a//b"])
async def test_a_path_out_of_the_project_is_refused(sandbox: Sandbox, path: str) -> None:
    with pytest.raises(BadPath):
        await sandbox.write_files({path: b""})
    with pytest.raises(BadPath):
        await sandbox.read_file(path)
    with pytest.raises(BadPath):
        await sandbox.start("true", log_path=path)


# Commands


async def test_a_command_runs_in_the_project_folder_of_an_empty_sandbox(sandbox: Sandbox) -> None:
    result = await sandbox.run("pwd; ls -A", timeout_s=10)
    assert (result.exit_code, result.output) == (0, f"{PROJECT_DIR}\n")


@pytest.mark.parametrize(("command", "exit_code"), [("true", 0), ("exit 3", 3), ("no-such", 127)])
async def test_an_exit_code_is_a_result(sandbox: Sandbox, command: str, exit_code: int) -> None:
    assert (await sandbox.run(command, timeout_s=10)).exit_code == exit_code


async def test_a_command_gets_the_environment_it_is_given(sandbox: Sandbox) -> None:
    env = {"PATH": "/my/bin:/usr/bin:/bin", "QUOTED": 'it\'s "so" $HOME\nnext', "EMPTY": ""}
    command = 'printf "%s|" "$PATH" "$QUOTED" "${EMPTY-unset}" "${OTHER-unset}"'
    result = await sandbox.run(command, timeout_s=10, env=env)
    assert result.output.split("|")[:4] == [*env.values(), "unset"]


async def test_no_variable_of_the_worker_is_in_a_sandbox(
    runtime: SandboxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "E2B_API_KEY", "DATABASE_URL", "HEADRACE_KEY"):
        monkeypatch.setenv(name, "of-the-worker")
    sandbox = await runtime.create(metadata={"job": "j1"}, timeout_s=60)
    look = "env"
    if runtime.provider == "local":  # those of all processes in it; the other's are our server's
        look += "; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"
    seen = (await sandbox.run(look, timeout_s=10, env={"MINE": "mine"})).output
    assert "MINE=mine" in seen
    for name in ("of-the-worker", "API_KEY", "DATABASE_URL", "HEADRACE_KEY", "PYTEST_"):
        assert name not in seen
    await sandbox.start(look, log_path="server.log")

    async def has_looked() -> bool:
        return b"PATH=" in await sandbox.read_file("server.log")

    await until(has_looked)
    assert b"of-the-worker" not in await sandbox.read_file("server.log")


async def test_an_environment_may_be_as_large_as_all_secrets_of_a_project(
    sandbox: Sandbox,
) -> None:
    # Control characters take six bytes each on the way, more than any others.
    env = {f"SECRET_{number}": "\x01" * 32_000 for number in range(4)}
    counted = await sandbox.run("env | tr -dc '\\001' | wc -c", timeout_s=10, env=env)
    assert counted.output.strip() == "128000"


async def test_a_command_is_a_line_of_the_shell(sandbox: Sandbox) -> None:
    result = await sandbox.run('for i in 1 2; do\n echo "it\'s $i" | cat\ndone', timeout_s=10)
    assert result.output == "it's 1\nit's 2\n"


async def test_output_is_seen_while_the_command_runs(sandbox: Sandbox) -> None:
    seen = anyio.Event()

    async def on_output(stream: Stream, text: str) -> None:
        assert (stream, text) in [("stdout", "first\n"), ("stdout", "second\n")]
        seen.set()

    async def reply() -> None:
        await seen.wait()
        await sandbox.write_files({"reply": b""})

    command = "echo first; until [ -e reply ]; do sleep 0.01; done; echo second"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reply)
        result = await sandbox.run(command, timeout_s=10, on_output=on_output)
    assert result.output == "first\nsecond\n"


async def test_each_stream_comes_whole_and_in_order(sandbox: Sandbox) -> None:
    heard: dict[Stream, str] = {"stdout": "", "stderr": ""}

    async def on_output(stream: Stream, text: str) -> None:
        heard[stream] += text

    command = "for i in $(seq 1500); do echo out $i; echo err $i >&2; done"
    result = await sandbox.run(command, timeout_s=10, on_output=on_output)
    assert heard["stdout"] == "".join(f"out {number + 1}\n" for number in range(1500))
    assert heard["stderr"] == "".join(f"err {number + 1}\n" for number in range(1500))
    assert sorted(result.output.split()) == sorted("".join(heard.values()).split())


async def test_a_character_that_comes_in_two_pieces_is_one(sandbox: Sandbox) -> None:
    pieces: list[str] = []

    async def on_output(stream: Stream, text: str) -> None:
        pieces.append(text)

    command = r"printf 'gr\303'; sleep 0.1; printf '\274n'"
    result = await sandbox.run(command, timeout_s=10, on_output=on_output)
    assert result.output == "".join(pieces) == "grün"


async def test_a_result_keeps_only_the_tail_of_its_output(sandbox: Sandbox) -> None:
    heard_bytes = 0

    async def on_output(stream: Stream, text: str) -> None:
        nonlocal heard_bytes
        heard_bytes += len(text.encode())

    command = "seq 100000; echo last"
    result = await sandbox.run(command, timeout_s=10, on_output=on_output)
    assert heard_bytes == len("".join(f"{number + 1}\n" for number in range(100_000))) + 5
    assert len(result.output.encode()) == OUTPUT_TAIL_BYTES
    assert result.output.endswith("\n99999\n100000\nlast\n")


async def test_an_error_of_the_listener_reaches_the_caller_and_ends_the_command(
    sandbox: Sandbox,
) -> None:
    async def on_output(stream: Stream, text: str) -> None:
        raise LookupError("superseded")

    with pytest.raises(LookupError, match="superseded"):
        await sandbox.run(HOLD_LOCK, timeout_s=10, on_output=on_output)
    assert (await sandbox.run(IS_FREE, timeout_s=10)).exit_code == 0


async def test_a_command_that_takes_too_long_is_ended_with_all_it_started(
    sandbox: Sandbox,
) -> None:
    with pytest.raises(CommandTimeout) as caught:
        await sandbox.run(HOLD_LOCK, timeout_s=0.5)
    assert (caught.value.command, caught.value.timeout_s) == (HOLD_LOCK, 0.5)
    assert caught.value.output == "locked\n"
    assert (await sandbox.run(IS_FREE, timeout_s=10)).exit_code == 0


async def test_a_cancelled_command_is_ended_with_all_it_started(sandbox: Sandbox) -> None:
    locked = anyio.Event()

    async def on_output(stream: Stream, text: str) -> None:
        locked.set()

    async with anyio.create_task_group() as tasks:
        hold = partial(sandbox.run, HOLD_LOCK, timeout_s=60, on_output=on_output)
        tasks.start_soon(hold)
        await locked.wait()
        assert (await sandbox.run(IS_LOCKED, timeout_s=10)).exit_code == 1
        tasks.cancel_scope.cancel()
    assert (await sandbox.run(IS_FREE, timeout_s=10)).exit_code == 0


async def test_a_command_does_not_wait_for_a_child_it_left_behind(sandbox: Sandbox) -> None:
    result = await sandbox.run("sleep 1000 & echo done; exit 4", timeout_s=10)
    assert (result.exit_code, result.output) == (4, "done\n")


# Servers


async def test_a_server_outlives_the_connection_that_started_it(
    runtime: SandboxRuntime, sandbox: Sandbox
) -> None:
    await sandbox.write_files({"index.html": b"hello"})
    await sandbox.start(SERVE, log_path="logs/server.log")
    await sandbox.close()
    again = await runtime.connect(sandbox.sandbox_id)
    url = again.preview_url(PREVIEW_PORT)
    assert not url.endswith("/")

    async def serves() -> bool:
        return await answer(f"{url}/index.html") == "hello"

    async def logged() -> bool:
        return b"GET /index.html" in await again.read_file("logs/server.log")

    await until(serves)
    await until(logged)


async def test_a_server_begins_its_log_anew_and_goes_on_writing_to_it(sandbox: Sandbox) -> None:
    await sandbox.write_files({"logs/it's.log": b"before\n"})
    env = {"WORD": "two words"}
    command = 'echo "$WORD"; sh -c pwd >&2; echo last'
    await sandbox.start(command, log_path="logs/it's.log", env=env)
    expected = f"two words\n{PROJECT_DIR}\nlast\n".encode()

    async def logged() -> bool:
        return await sandbox.read_file("logs/it's.log") == expected

    await until(logged)


async def test_two_sandboxes_serve_on_the_same_port_without_meeting(
    runtime: SandboxRuntime,
) -> None:
    urls = {}
    for name in ("one", "two"):
        sandbox = await runtime.create(metadata={}, timeout_s=60)
        await sandbox.write_files({"index.html": name.encode()})
        await sandbox.start(SERVE, log_path="server.log")
        urls[name] = sandbox.preview_url(PREVIEW_PORT)

    async def serve_their_own() -> bool:
        return all([await answer(url) == name for name, url in urls.items()])

    await until(serve_their_own)


async def test_a_server_ends_with_its_sandbox(runtime: SandboxRuntime, sandbox: Sandbox) -> None:
    await sandbox.write_files({"index.html": b"hello"})
    await sandbox.start(SERVE, log_path="server.log")
    url = sandbox.preview_url(PREVIEW_PORT)

    async def serves() -> bool:
        return await answer(url) is not None

    async def is_silent() -> bool:
        return await answer(url) is None

    await until(serves)
    await runtime.kill(sandbox.sandbox_id)
    await until(is_silent)


# The life of a sandbox


async def test_an_id_fits_into_a_path(runtime: SandboxRuntime, sandbox: Sandbox) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", sandbox.sandbox_id)
    assert (await runtime.connect(sandbox.sandbox_id)).sandbox_id == sandbox.sandbox_id


async def test_killing_says_whether_there_was_a_sandbox(
    runtime: SandboxRuntime, sandbox: Sandbox
) -> None:
    assert await runtime.kill(sandbox.sandbox_id) is True
    assert await runtime.kill(sandbox.sandbox_id) is False
    assert await runtime.list({}) == []


@pytest.mark.parametrize(
    "use",
    [
        lambda sandbox: sandbox.write_files({"a": b""}),
        lambda sandbox: sandbox.read_file("a"),
        lambda sandbox: sandbox.run("true", timeout_s=10),
        lambda sandbox: sandbox.start("true", log_path="log"),
        lambda sandbox: sandbox.end_processes(),
    ],
    ids=["write_files", "read_file", "run", "start", "end_processes"],
)
async def test_an_ended_sandbox_is_gone_for_every_method(
    runtime: SandboxRuntime, sandbox: Sandbox, use: Callable[[Sandbox], Awaitable[object]]
) -> None:
    await runtime.kill(sandbox.sandbox_id)
    with pytest.raises(SandboxGone) as caught:
        await use(sandbox)
    assert caught.value.sandbox_id == sandbox.sandbox_id


async def test_a_command_notices_that_its_sandbox_is_killed(
    runtime: SandboxRuntime, sandbox: Sandbox
) -> None:
    async def kill(stream: Stream, text: str) -> None:
        await runtime.kill(sandbox.sandbox_id)

    with pytest.raises(SandboxGone):
        await sandbox.run("echo ready; sleep 1000", timeout_s=10, on_output=kill)


async def test_all_processes_can_be_ended_and_the_files_stay(
    runtime: SandboxRuntime, sandbox: Sandbox
) -> None:
    locked = anyio.Event()
    results: list[int] = []

    async def locked_by(command: str) -> None:
        async def see(stream: Stream, text: str) -> None:
            locked.set()

        results.append((await sandbox.run(command, timeout_s=60, on_output=see)).exit_code)

    await sandbox.write_files({"kept": b"kept"})
    await sandbox.start("exec 9>other; flock 9; sleep 1000", log_path="server.log")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(locked_by, HOLD_LOCK)
            await locked.wait()
            other = await runtime.connect(sandbox.sandbox_id)
            await other.end_processes()
    assert results != [0]
    for command in (IS_FREE, IS_FREE.replace("lock true", "other true")):
        assert (await sandbox.run(command, timeout_s=10)).exit_code == 0
    assert await sandbox.read_file("kept") == b"kept"
    await other.end_processes()


async def test_a_sandbox_that_never_was_is_gone(runtime: SandboxRuntime) -> None:
    with pytest.raises(SandboxGone):
        await runtime.connect("never-was")
    assert await runtime.kill("never-was") is False


@pytest.mark.parametrize("sandbox_id", BAD_IDS)
async def test_what_cannot_be_an_id_is_no_sandbox(runtime: SandboxRuntime, sandbox_id: str) -> None:
    with pytest.raises(SandboxGone):
        await runtime.connect(sandbox_id)
    assert await runtime.kill(sandbox_id) is False


async def test_listing_finds_what_carries_all_of_the_metadata(runtime: SandboxRuntime) -> None:
    async def create(**metadata: str) -> str:
        return (await runtime.create(metadata=metadata, timeout_s=60)).sandbox_id

    async def find(**metadata: str) -> set[str]:
        return {info.sandbox_id for info in await runtime.list(metadata)}

    one = await create(tenant="t1", job="j1")
    two = await create(tenant="t1", job="j2")
    three = await create(tenant="t2", job="j1")
    assert await find() == {one, two, three}
    assert await find(tenant="t1") == {one, two}
    assert await find(tenant="t1", job="j2") == {two}
    assert await find(tenant="t2", job="j2") == set()
    assert await find(attempt="1") == set()


async def test_a_listed_sandbox_tells_its_metadata_and_its_end(runtime: SandboxRuntime) -> None:
    metadata = {"tenant": "t-1", "job": "j_1"}
    sandbox = await runtime.create(metadata=metadata, timeout_s=120)
    (info,) = await runtime.list(metadata)
    assert (info.sandbox_id, dict(info.metadata)) == (sandbox.sandbox_id, metadata)
    assert abs(info.ends_at - datetime.now(UTC) - timedelta(seconds=120)) < timedelta(seconds=10)


async def test_a_listed_sandbox_tells_when_it_was_made(
    runtime: SandboxRuntime, sandbox: Sandbox
) -> None:
    (info,) = await runtime.list({"job": "j1"})
    assert abs(datetime.now(UTC) - info.started_at) < timedelta(seconds=60)
    assert info.is_paused is False


async def test_a_sandbox_that_runs_and_is_woken_runs_on(
    runtime: SandboxRuntime, sandbox: Sandbox
) -> None:
    await sandbox.start(HOLD_LOCK, log_path="log")

    async def is_locked() -> bool:
        return (await sandbox.run(IS_LOCKED, timeout_s=10)).exit_code == 1

    await until(is_locked)
    ends_at = await runtime.wake(sandbox.sandbox_id, timeout_s=600)
    (info,) = await runtime.list({"job": "j1"})
    assert abs(info.ends_at - ends_at) < timedelta(seconds=1)
    assert await is_locked()


async def test_a_paused_sandbox_goes_on_where_it_was_when_it_is_woken(
    runtime: SandboxRuntime, sandbox: Sandbox
) -> None:
    if not runtime.can_pause:
        with pytest.raises(SandboxUnavailable, match="cannot be paused"):
            await runtime.pause(sandbox.sandbox_id)
        return
    await sandbox.start(HOLD_LOCK, log_path="log")
    for _ in range(2):  # once more does no harm
        await runtime.pause(sandbox.sandbox_id)
    (info,) = await runtime.list({"job": "j1"})
    assert info.is_paused
    ends_at = await runtime.wake(sandbox.sandbox_id, timeout_s=600)
    (info,) = await runtime.list({"job": "j1"})
    assert not info.is_paused
    assert abs(info.ends_at - ends_at) < timedelta(seconds=1)
    assert abs(ends_at - datetime.now(UTC) - timedelta(seconds=600)) < timedelta(seconds=60)
    assert (await sandbox.run(IS_LOCKED, timeout_s=10)).exit_code == 1


@pytest.mark.parametrize("sandbox_id", ["never-was", "../etc"])
async def test_what_is_not_there_can_be_neither_paused_nor_woken(
    runtime: SandboxRuntime, sandbox_id: str
) -> None:
    with pytest.raises(SandboxGone):
        await runtime.wake(sandbox_id, timeout_s=60)
    if runtime.can_pause:
        with pytest.raises(SandboxGone):
            await runtime.pause(sandbox_id)


async def test_connecting_does_not_move_the_end(runtime: SandboxRuntime, sandbox: Sandbox) -> None:
    (before,) = await runtime.list({})
    await runtime.connect(sandbox.sandbox_id)
    (after,) = await runtime.list({})
    assert abs(after.ends_at - before.ends_at) < timedelta(seconds=1)


async def test_a_sandbox_ends_by_itself(runtime: SandboxRuntime) -> None:
    sandbox = await runtime.create(metadata={}, timeout_s=1)

    async def is_over() -> bool:
        return await runtime.list({}) == []

    await until(is_over)
    with pytest.raises(SandboxGone):
        await runtime.connect(sandbox.sandbox_id)
    with pytest.raises(SandboxGone):
        await sandbox.read_file("a")
    assert await runtime.kill(sandbox.sandbox_id) is False
