"""Real sandboxes of this machine for tests, and what the host can tell about them."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import SocketStream

import generator
from generator.sandbox import PREVIEW_PORT
from generator.sandboxes.local import Limits, registry
from generator.sandboxes.local.sandbox import LocalSandbox

SMALL = Limits(
    memory_bytes=128 * 1024 * 1024,
    processes=40,
    disk_bytes=8 * 1024 * 1024,
    scratch_bytes=1024 * 1024,
    files=2000,
)
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


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def zombies() -> list[str]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in children if status_of(int(pid))["State"].startswith("Z")]


def program(path: Path, text: str) -> Path:
    path.parent.chmod(0o755)
    path.write_text(text)
    path.chmod(0o755)
    return path


async def all_ended(processes: dict[int, int]) -> None:
    with anyio.fail_after(10):
        for fd in processes.values():
            await anyio.wait_readable(fd)
            os.close(fd)


def remains(state_dir: Path, run_dir: Path, info: registry.Info) -> list[str]:
    cgroup_folders = [path for path in info["cgroups"].values() if Path(path).exists()]
    return [*cgroup_folders, *names_in(state_dir), *names_in(run_dir)]


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
