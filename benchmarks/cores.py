"""What this machine gives to a second busy process: the limit of whatever is done by two."""

import time
from statistics import median

import anyio
import anyio.to_process

from benchmarks.rows import ROUNDS, Row

BUSY_S = 0.5
"""How long a round keeps each process busy."""


async def busy_processes(count: int) -> Row:
    """Turns a second of a loop in Python, of so many processes together beside one by itself.

    Cores that are shared, or are threads of one core, give less than so many times as much.
    """
    await _turns_per_s(count)  # the processes stay, and the next ones need not start
    alone: list[float] = []
    together: list[float] = []
    for _ in range(ROUNDS):
        alone.append(await _turns_per_s(1))
        together.append(await _turns_per_s(count))
    return Row(
        "busy_processes",
        round(median(together)),
        "turns/s",
        f"one process, not {count}",
        round(median(alone)),
    )


async def _turns_per_s(processes: int) -> float:
    found: list[float] = []
    # By itself it takes no more than there are cores.
    limiter = anyio.CapacityLimiter(processes)

    async def spin() -> None:
        found.append(await anyio.to_process.run_sync(_spin, BUSY_S, limiter=limiter))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(processes):
                tasks.start_soon(spin)
    return sum(found)


def _spin(for_s: float) -> float:
    """Turns a second of a loop that makes and drops objects, as a fold does."""
    turns = 0
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < for_s:
        for number in range(100):
            {"number": number, "text": str(number)}.copy()
        turns += 1
    return turns / took
