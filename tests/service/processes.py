"""What a test can tell of processes that are not its children: whose they are, when they end."""

import os
import select
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

END_S = 60.0
PROC = Path("/proc")


def children_of(pid: int) -> list[int]:
    return [int(child) for child in (PROC / f"{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    return (PROC / f"{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def with_descendants(pid: int) -> list[int]:
    """A process and all below it, the eldest first."""
    found = [pid]
    for parent in found:
        found += children_of(parent)
    return found


def processes_of(home: Path) -> dict[int, str]:
    """Every living process that works on `home`: process id to command line.

    Known by its command line, its environment or a file it has open, wherever it came from.
    """
    found: dict[int, str] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if os.fsencode(home) in _traces(folder):
                    found[int(folder.name)] = command_of(int(folder.name))
            except OSError:
                continue  # it ended in between
    return found


def _traces(process: Path) -> bytes:
    opened = [os.fsencode(os.readlink(fd)) for fd in (process / "fd").iterdir()]
    said = [(process / name).read_bytes() for name in ("cmdline", "environ")]
    return b"\0".join([*said, *opened])


def wait_for_end(pids: Iterable[int]) -> None:
    """Return when all of these have ended, whoever their parent is; a zombie has ended."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ended, _, _ = select.select([descriptor], [], [], END_S)
            assert ended, f"process {pid} goes on: {command_of(pid)}"
        finally:
            os.close(descriptor)


def kill_all(home: Path) -> None:
    """Clean up after a test, whatever became of it: nothing of `home` runs then."""
    while found := processes_of(home):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        wait_for_end(found)


@contextmanager
def frozen(*roots: int) -> Iterator[None]:
    """While the block runs these processes and all below them stand still."""
    stopped: list[int] = []
    try:
        for root in roots:
            os.kill(root, signal.SIGSTOP)  # first, so that it starts nothing more
            stopped += with_descendants(root)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)
