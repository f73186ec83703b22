"""How many cores are busy, what one does alone, and what a second busy process gets."""

import os
import resource
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio

BUSY_S = 0.5
"""How long a round keeps each process busy."""
_SPIN = Path(__file__).parent / "spin.py"


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

    Of what has ended by now only this process's own children count.
    """
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + sum(map(_thread_s, _threads(os.getpid())))


def _thread_s(thread: int) -> float:
    try:
        stat = Path(f"/proc/{thread}/task/{thread}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0.0
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _keep_on(cores: Set[int]) -> None:
    for thread in _threads(os.getpid()):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread, cores)


def _threads(process: int) -> Iterator[int]:
    """Those of a process and of all below it, from /proc of Linux."""
    for task in Path(f"/proc/{process}/task").glob("*"):
        yield int(task.name)
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for child in (task / "children").read_text().split():
                yield from _threads(int(child))


async def turns_per_s(processes: int) -> float:
    """Turns a second of a loop in Python, of so many processes together.

    Cores that are shared, or are threads of one core, give less than so many times as much as one.
    """
    found: list[float] = []

    async def spin() -> None:
        done = await anyio.run_process([sys.executable, str(_SPIN), str(BUSY_S)])
        found.append(float(done.stdout))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(processes):
                tasks.start_soon(spin)
    return sum(found)
