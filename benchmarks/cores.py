"""How many cores are busy, and how to leave only one."""

import os
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep this process and all that it starts, servers too, on one core while the block runs.

    Servers that somebody else has started stay where they are.
    """
    allowed = os.sched_getaffinity(0)
    _keep_on({min(allowed)})
    try:
        yield
    finally:
        _keep_on(allowed)


def busy_s() -> float:
    """Seconds of processor time that this process and all that it has started have had so far.

    Servers that somebody else has started are left out.
    """
    return sum(map(_busy_s, _family(os.getpid())))


def _busy_s(process: int) -> float:
    """Its own, and that of its children that have ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0.0
    return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")


def _keep_on(cores: Set[int]) -> None:
    for process in _family(os.getpid()):
        for thread in Path(f"/proc/{process}/task").glob("*"):
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), cores)


def _family(process: int) -> Iterator[int]:
    """A process and all below it, from /proc of Linux."""
    yield process
    for thread in Path(f"/proc/{process}/task").glob("*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for child in (thread / "children").read_text().split():
                yield from _family(int(child))
