"""What sandboxes of this machine promise beyond the contract of all sandboxes."""

import os
import select
import signal
import sys
from contextlib import closing
from pathlib import Path

import anyio
import httpx
import pytest

from generator.errors import (
    CommandTimeout,
    SandboxError,
    SandboxFull,
    SandboxGone,
    SandboxUnavailable,
)
from generator.sandbox import PREVIEW_PORT, PROJECT_DIR, SandboxRuntime, Stream
from generator.sandboxes.local import LocalRuntime, registry
from generator.sandboxes.local.inside import agent, commands
from generator.sandboxes.local.launch import Nursery
from generator.sandboxes.local.registry import Info
from generator.sandboxes.local.sandbox import LocalSandbox
from tests.generator.local.probes import (
    ECHO,
    IMPORTS,
    SMALL,
    all_ended,
    browser,
    everything,
    info_of,
    names_in,
    output,
    processes_of,
    program,
    remains,
    serve,
    status_of,
    zombies,
)

pytestmark = pytest.mark.anyio


# The life of a sandbox


async def busy_processes(sandbox: LocalSandbox, info: Info) -> dict[int, int]:
    """The processes of a sandbox that does all it can to keep some of them."""
    await sandbox.run("mkfifo ready", timeout_s=10)
    await sandbox.start("setsid sh -c 'echo >ready; sleep 1000' & sleep 1000", log_path="log")
    await output(sandbox, "cat ready")
    processes = processes_of(info)
    assert len(processes) >= 5
    return processes


async def test_a_sandbox_is_found_again_by_another_process(
    sandbox: LocalSandbox, state_dir: Path, run_dir: Path
) -> None:
    await serve(sandbox, ECHO)
    await sandbox.close()
    code = f"""{IMPORTS}
async def main():
    runtime = LocalRuntime(Path({str(state_dir)!r}), Path({str(run_dir)!r}))
    sandbox = await runtime.connect({sandbox.sandbox_id!r})
    print(sandbox.preview_url(8080), (await sandbox.run("cat server.log", timeout_s=10)).exit_code)
anyio.run(main)
"""
    other = await anyio.run_process([sys.executable, "-c", code])
    assert other.stdout.decode().split() == [sandbox.preview_url(8080), "0"]


async def test_a_sandbox_ends_at_its_time_without_any_worker(
    runtime: LocalRuntime, state_dir: Path, run_dir: Path
) -> None:
    sandbox = await runtime.create(metadata={}, timeout_s=2)
    info = info_of(state_dir, sandbox)
    await all_ended(processes_of(info))
    assert remains(state_dir, run_dir, info) == []
    with pytest.raises(SandboxGone):
        await sandbox.run("true", timeout_s=10)


async def test_killing_leaves_no_process_socket_folder_or_cgroup(
    runtime: LocalRuntime, sandbox: LocalSandbox, state_dir: Path, run_dir: Path
) -> None:
    info = info_of(state_dir, sandbox)
    processes = await busy_processes(sandbox, info)
    assert await runtime.kill(sandbox.sandbox_id) is True
    del processes[info["pid"]]  # the supervisor itself, which may be exiting still
    assert len(select.select(list(processes.values()), [], [], 0)[0]) == len(processes)
    assert remains(state_dir, run_dir, info) == []


async def test_a_killed_supervisor_takes_its_sandbox_along_and_is_cleaned_up_after(
    runtime: LocalRuntime, sandbox: LocalSandbox, state_dir: Path, run_dir: Path
) -> None:
    info = info_of(state_dir, sandbox)
    processes = await busy_processes(sandbox, info)
    os.kill(info["pid"], signal.SIGKILL)
    await all_ended(processes)
    assert remains(state_dir, run_dir, info) != []
    assert await runtime.list({}) == []
    assert remains(state_dir, run_dir, info) == []
    with pytest.raises(SandboxGone):
        await sandbox.read_file("a")


async def test_creating_cleans_up_after_others_too(
    runtime: LocalRuntime, sandbox: LocalSandbox, state_dir: Path, run_dir: Path
) -> None:
    info = info_of(state_dir, sandbox)
    processes = processes_of(info)
    os.kill(info["pid"], signal.SIGKILL)
    await all_ended(processes)
    another = await runtime.create(metadata={}, timeout_s=60)
    assert names_in(state_dir) == [another.sandbox_id]


async def test_a_supervisor_that_hangs_is_killed_with_its_sandbox(
    runtime: LocalRuntime,
    sandbox: LocalSandbox,
    state_dir: Path,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("generator.sandboxes.local.runtime.KILL_S", 0.2)
    info = info_of(state_dir, sandbox)
    processes = processes_of(info)
    os.kill(info["pid"], signal.SIGSTOP)
    assert await runtime.kill(sandbox.sandbox_id) is True
    await all_ended(processes)
    assert remains(state_dir, run_dir, info) == []


async def test_what_a_power_cut_left_is_no_sandbox_and_no_obstacle(
    runtime: LocalRuntime, state_dir: Path
) -> None:
    folder = state_dir / "sb-half"
    folder.mkdir(parents=True)
    (folder / "info.json").touch()
    assert await runtime.list({}) == []
    assert await runtime.kill(folder.name) is False
    sandbox = await runtime.create(metadata={}, timeout_s=60)
    assert [info.sandbox_id for info in await runtime.list({})] == [sandbox.sandbox_id]


async def test_a_cancelled_creation_leaves_nothing(
    runtime: LocalRuntime, state_dir: Path, run_dir: Path
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: runtime.create(metadata={}, timeout_s=60))
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert await runtime.list({}) == []
    assert names_in(run_dir) == []


async def test_a_nursery_that_was_killed_is_made_anew(state_dir: Path, run_dir: Path) -> None:
    with closing(Nursery()) as nursery:
        runtime = LocalRuntime(state_dir, run_dir, SMALL, nursery=nursery)
        before = await runtime.create(metadata={}, timeout_s=60)
        assert nursery.pid is not None
        ended = {nursery.pid: os.pidfd_open(nursery.pid)}
        os.kill(nursery.pid, signal.SIGKILL)
        await all_ended(ended)
        after = await runtime.create(metadata={}, timeout_s=60)
    for sandbox in (before, after):
        assert (await sandbox.run("true", timeout_s=20)).exit_code == 0
        await runtime.kill(sandbox.sandbox_id)
    assert zombies() == []


async def test_a_sandbox_is_no_child_of_its_worker(sandbox: LocalSandbox, state_dir: Path) -> None:
    supervisor = info_of(state_dir, sandbox)["pid"]
    assert int(status_of(supervisor)["PPid"]) != os.getpid()
    assert os.getsid(supervisor) != os.getsid(0)
    assert zombies() == []


# Prepared before it is asked for


async def prepared(runtime: LocalRuntime, state_dir: Path) -> Info:
    """What the supervisor holds that `runtime` has started ahead."""
    await runtime.prepare()
    return await only_one(state_dir)


async def only_one(state_dir: Path) -> Info:
    """What the only supervisor holds, as soon as it holds something."""
    (name,) = names_in(state_dir)
    with anyio.fail_after(20):
        while (info := registry.living(str(state_dir / name))) is None:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    return info


async def test_a_prepared_sandbox_is_the_one_that_is_made_and_lives_from_then_on(
    runtime: LocalRuntime, state_dir: Path
) -> None:
    before = await prepared(runtime, state_dir)
    sandbox = await runtime.create(metadata={"job": "j1"}, timeout_s=60)
    info = info_of(state_dir, sandbox)
    assert info["sandbox_id"] == before["sandbox_id"]
    assert info["started_at"] > before["started_at"]
    assert info["ends_at"] == info["started_at"] + 60
    assert zombies() == []


async def test_a_prepared_sandbox_that_nobody_takes_is_gone_when_its_runtime_is_closed(
    runtime: LocalRuntime, state_dir: Path, run_dir: Path
) -> None:
    info = await prepared(runtime, state_dir)
    supervisor = os.pidfd_open(info["pid"])
    await runtime.close()
    assert remains(state_dir, run_dir, info) == []
    await all_ended({info["pid"]: supervisor})
    assert zombies() == []


async def test_a_prepared_sandbox_ends_with_the_process_that_prepared_it(
    state_dir: Path, run_dir: Path, isolation_is_possible: None
) -> None:
    code = f"""{IMPORTS}
async def main():
    runtime = LocalRuntime(Path({str(state_dir)!r}), Path({str(run_dir)!r}))
    await runtime.prepare()
    print("prepared", flush=True)
    await anyio.sleep_forever()
anyio.run(main)
"""
    async with await anyio.open_process([sys.executable, "-c", code]) as process:
        assert process.stdout is not None
        with anyio.fail_after(20):
            assert (await process.stdout.receive()).startswith(b"prepared")
            info = await only_one(state_dir)
        supervisor = os.pidfd_open(info["pid"])
        process.kill()
    await all_ended({info["pid"]: supervisor})
    assert remains(state_dir, run_dir, info) == []


async def test_why_a_prepared_sandbox_did_not_come_up_is_told_to_who_asks_for_one(
    state_dir: Path, tmp_path: Path, run_dir: Path, isolation_is_possible: None
) -> None:
    bwrap = program(tmp_path / "bwrap", "#!/bin/sh\necho no such luck >&2\nexit 1\n")
    unlucky = LocalRuntime(state_dir, run_dir, bwrap=bwrap)
    await unlucky.prepare()
    with pytest.raises(SandboxUnavailable, match="no such luck"):
        await unlucky.create(metadata={}, timeout_s=60)
    assert names_in(state_dir) == names_in(run_dir) == []


async def test_of_a_prepared_sandbox_whose_supervisor_was_killed_nothing_is_left(
    runtime: LocalRuntime, state_dir: Path, run_dir: Path
) -> None:
    info = await prepared(runtime, state_dir)
    processes = processes_of(info)
    os.kill(info["pid"], signal.SIGKILL)
    with pytest.raises(SandboxError, match="said nothing"):
        await runtime.create(metadata={}, timeout_s=60)
    await all_ended(processes)
    assert await runtime.list({}) == []
    assert remains(state_dir, run_dir, info) == []
    assert (await runtime.create(metadata={}, timeout_s=60)).sandbox_id != info["sandbox_id"]


async def test_a_claim_that_was_given_up_makes_no_sandbox_later(
    runtime: LocalRuntime, state_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.sandboxes.local.launch.UP_WITHIN_S", 0.2)
    info = await prepared(runtime, state_dir)
    supervisor = os.pidfd_open(info["pid"])
    os.kill(info["pid"], signal.SIGSTOP)
    with pytest.raises(SandboxError, match="no sandbox came up within"):
        await runtime.create(metadata={"job": "j1"}, timeout_s=60)
    os.kill(info["pid"], signal.SIGCONT)
    await all_ended({info["pid"]: supervisor})
    assert await runtime.list({}) == []
    assert remains(state_dir, run_dir, info) == []


async def test_a_sandbox_that_cannot_be_written_down_ends(
    runtime: LocalRuntime, state_dir: Path, run_dir: Path
) -> None:
    info = await prepared(runtime, state_dir)
    processes = processes_of(info)
    (state_dir / info["sandbox_id"] / ".info.json").touch()  # in the way of the second writing
    with pytest.raises(SandboxError, match="said nothing"):
        await runtime.create(metadata={"job": "j1"}, timeout_s=60)
    await all_ended(processes)
    assert await runtime.list({}) == []
    assert remains(state_dir, run_dir, info) == []


# Commands


@pytest.mark.parametrize("command", ["./child.sh & ./child.sh", "trap '' TERM; ./child.sh"])
async def test_a_timeout_ends_children_that_ignore_being_asked(
    sandbox: LocalSandbox, command: str
) -> None:
    child = "trap '' TERM; echo $$ >child; while :; do sleep 1; done"
    await sandbox.write_files({"child.sh": child.encode()})
    with pytest.raises(CommandTimeout):
        await sandbox.run(command, timeout_s=0.3)
    assert (await sandbox.run("kill -0 $(cat child)", timeout_s=10)).exit_code == 1


async def test_a_command_is_ended_when_the_process_that_asked_for_it_is_killed(
    sandbox: LocalSandbox, state_dir: Path, run_dir: Path
) -> None:
    await sandbox.run("mkfifo started", timeout_s=10)
    code = f"""{IMPORTS}
async def main():
    runtime = LocalRuntime(Path({str(state_dir)!r}), Path({str(run_dir)!r}))
    sandbox = await runtime.connect({sandbox.sandbox_id!r})
    await sandbox.run("exec 9>lock; flock 9; echo >started; sleep 1000", timeout_s=1000)
anyio.run(main)
"""
    async with await anyio.open_process([sys.executable, "-c", code]) as worker:
        await output(sandbox, "cat started")
        worker.kill()
        await worker.wait()
    assert (await sandbox.run("flock --timeout 10 lock true", timeout_s=20)).exit_code == 0


async def test_a_command_killed_by_a_signal_exits_as_a_shell_says_it(sandbox: LocalSandbox) -> None:
    assert (await sandbox.run("kill -9 $$", timeout_s=10)).exit_code == 137


async def test_a_process_that_left_its_group_holds_nobody_up(sandbox: LocalSandbox) -> None:
    with anyio.fail_after(10):
        command = "setsid sh -c 'touch left; exec sleep 1000' & until [ -e left ]; do :; done"
        result = await sandbox.run(f"{command}; echo done", timeout_s=1000)
    assert result.output == "done\n"


async def test_endless_output_grows_memory_nowhere(sandbox: LocalSandbox, state_dir: Path) -> None:
    supervisor = info_of(state_dir, sandbox)["pid"]
    with pytest.raises(CommandTimeout) as caught:
        await sandbox.run("yes", timeout_s=1)
    assert caught.value.output.endswith("y\ny\n")
    agent_peak = await output(sandbox, "grep VmHWM /proc/1/status")
    for peak in (status_of(supervisor)["VmHWM"], agent_peak.partition(":")[2]):
        assert int(peak.split()[0]) < 64 * 1024


async def test_a_listener_that_takes_its_time_stops_the_command_meanwhile(
    sandbox: LocalSandbox,
) -> None:
    lines_heard = 0

    async def on_output(stream: Stream, text: str) -> None:
        nonlocal lines_heard
        if lines_heard == 0:
            # Far behind 20 MB, the command is kept from going on by what lies between us.
            assert await output(sandbox, "test -e finished || echo waiting") == "waiting"
        lines_heard += text.count("\n")

    command = "seq 3000000; touch finished"
    await sandbox.run(command, timeout_s=30, on_output=on_output)
    assert lines_heard == 3_000_000


# Files


async def test_a_link_planted_by_an_app_leads_nowhere_but_inside(
    sandbox: LocalSandbox, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    plant = f"mkdir -p .{tmp_path}; ln -s {victim} file; ln -s /dev/zero zero; mkfifo pipe"
    await sandbox.run(f"{plant}; ln -s / root", timeout_s=10)
    await sandbox.write_files({"file": b"theirs", "pipe": b"a file now"})
    assert victim.read_bytes() == b"mine"
    assert await sandbox.read_file("file") == b"theirs"
    assert await sandbox.read_file("pipe") == b"a file now"
    for path in ("zero", "root/etc/passwd"):
        with pytest.raises(FileNotFoundError):
            await sandbox.read_file(path)


async def test_files_that_do_not_fit_are_refused_and_the_sandbox_lives(
    sandbox: LocalSandbox,
) -> None:
    with pytest.raises(SandboxFull):
        await sandbox.write_files({"big": bytes(8 * SMALL.disk_bytes)})
    with pytest.raises(SandboxFull):
        await sandbox.write_files({"half": bytes(SMALL.disk_bytes // 2), "more": bytes(6_000_000)})
    assert (await sandbox.run("rm -f half more big; echo ok", timeout_s=10)).output == "ok\n"


# Previews


async def test_a_preview_carries_bytes_both_ways_and_each_end_alone(sandbox: LocalSandbox) -> None:
    await serve(sandbox, ECHO)
    sent = os.urandom(3_000_000)
    async with browser(sandbox) as stream:
        received = b""

        async def read() -> None:
            nonlocal received
            received = await everything(stream)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await stream.send(sent)
            await stream.send_eof()
    assert received == sent


async def test_hundreds_of_browsers_are_served_at_once(sandbox: LocalSandbox) -> None:
    serving = """
import selectors, socket
poll = selectors.DefaultSelector()
server = socket.create_server(("127.0.0.1", 8080), backlog=512)
poll.register(server, selectors.EVENT_READ)
print("listening", flush=True)
while True:
    for key, _ in poll.select():
        if key.fileobj is server:
            poll.register(server.accept()[0], selectors.EVENT_READ)
        elif data := key.fileobj.recv(100):
            key.fileobj.sendall(data)
        else:
            poll.unregister(key.fileobj)
            key.fileobj.close()
"""
    await serve(sandbox, serving)
    together = 300
    all_open = anyio.Event()
    answered: list[bytes] = []

    async def visit(number: int) -> None:
        async with browser(sandbox) as stream:
            await stream.send(b"%d" % number)
            answered.append(await stream.receive())
            if len(answered) == together:
                all_open.set()
            await all_open.wait()

    async with anyio.create_task_group() as tasks:
        for number in range(together):
            tasks.start_soon(visit, number)
    assert sorted(map(int, answered)) == list(range(together))


async def test_without_an_app_a_browser_is_let_go_in_peace(sandbox: LocalSandbox) -> None:
    async with browser(sandbox) as stream:
        await stream.send(b"POST / HTTP/1.1\r\n\r\n" + bytes(30_000_000))
        assert await everything(stream) == b""


async def test_an_app_that_listens_on_the_newer_loopback_only_is_found(
    sandbox: LocalSandbox,
) -> None:
    newer = ECHO.replace('"127.0.0.1"', '"::1"').replace(
        "request_queue_size",
        "address_family = __import__('socket').AF_INET6\n    request_queue_size",
    )
    await serve(sandbox, newer)
    async with browser(sandbox) as stream:
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"


async def test_only_the_port_of_the_app_can_be_seen(sandbox: LocalSandbox) -> None:
    with pytest.raises(ValueError, match="8080"):
        sandbox.preview_url(22)


async def test_a_preview_speaks_http(sandbox: LocalSandbox) -> None:
    await serve(
        sandbox,
        "from http.server import *\nserver = HTTPServer(('', 8080), SimpleHTTPRequestHandler)\n"
        "print('listening', flush=True)\nserver.serve_forever()\n",
    )
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        response = await client.get(f"{sandbox.preview_url(PREVIEW_PORT)}/server.py")
    assert response.text.startswith("from http.server")


# Agreement


def test_the_agent_and_the_protocol_speak_of_the_same_places() -> None:
    assert commands.PROJECT_DIR == PROJECT_DIR
    assert agent.APP_PORT == PREVIEW_PORT


def test_the_runtime_is_a_runtime(state_dir: Path, run_dir: Path) -> None:
    runtime: SandboxRuntime = LocalRuntime(state_dir, run_dir)
    assert runtime.provider == "local"
