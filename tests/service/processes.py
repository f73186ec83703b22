"""What a test can tell of processes that are not its children: whose they are, when they end."""

import os
import select
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

END_S = 60.0
PROC = Path("/proc")


def children_of(pid: int) -> list[int]:
    """None for a process that has ended."""
    try:
        return [int(child) for child in (PROC / f"{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def opened_by(pid: int) -> list[str]:
    """What a process has open, by name; nothing for one that has ended."""
    try:
        return [os.readlink(descriptor) for descriptor in (PROC / f"{pid}/fd").iterdir()]
    except OSError:
        return []


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
    said = [(process / name).read_bytes() for name in ("cmdline", "environ")]
    return b"\0".join([*said, *map(os.fsencode, opened_by(int(process.name)))])


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
        _tell(found, signal.SIGKILL)
        wait_for_end(found)


@contextmanager
def frozen(*roots: int) -> Iterator[None]:
    """While the block runs these processes and all below them stand still."""
    stopped: list[int] = []
    try:
        for root in roots:
            os.kill(root, signal.SIGSTOP)  # first, so that it starts nothing more
            stopped += with_descendants(root)
        _tell(stopped, signal.SIGSTOP)
        yield
    finally:
        _tell(reversed(stopped), signal.SIGCONT)


def _tell(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
