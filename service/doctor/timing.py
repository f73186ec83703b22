"""Whether the clocks agree, and how long a question takes."""

import time
from collections.abc import Awaitable, Callable, Mapping
from statistics import median

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.doctor.finding import Finding, duration, ok, problem, warning

APART_WARNING_S, APART_PROBLEM_S = 1.0, 60.0

SLOW_S = 0.005
"""A server beside takes 0.1 ms, one in the same region 1 or 2: more is another region, or a load.

A build of thirty events waits for thirty appends, and each line of progress for one.
"""
ROUNDS = 20


async def redis_offset_s(redis: Redis) -> float:
    """By how much the clock of Redis is ahead of this machine's."""
    began = time.time()
    seconds, microseconds = await redis.time()
    return float(seconds) + float(microseconds) / 1e6 - _middle(began)


async def postgres_offset_s(connection: AsyncConnection) -> float:
    """By how much the clock of Postgres is ahead of this machine's."""
    began = time.time()
    asked = await connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))
    return float(asked.scalar_one()) - _middle(began)


def _middle(began: float) -> float:
    """The answer was given between question and now, most likely in the middle."""
    return (began + time.time()) / 2


async def median_s(question: Callable[[], Awaitable[object]]) -> float:
    """How long a question usually takes."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await question()
        taken.append(time.perf_counter() - began)
    return median(taken)


def judge_clocks(offsets_s: Mapping[str, float]) -> Finding:
    """`offsets_s`: server to how far it is ahead of this machine."""
    ahead = {"this machine": 0.0, **offsets_s}
    first, last = max(ahead, key=ahead.__getitem__), min(ahead, key=ahead.__getitem__)
    apart = ahead[first] - ahead[last]
    if apart <= APART_WARNING_S:
        return ok("clocks", "less than a second apart")
    found = problem if apart > APART_PROBLEM_S else warning
    return found(
        "clocks",
        f"{first} is {duration(apart)} ahead of {last}",
        "Events then carry times in another order than they happened, and ages are told wrong; "
        "the order of the log and leases do not depend on it.",
        "timedatectl set-ntp true (on the machine that is wrong)",
    )


def judge_latency(latency_s: Mapping[str, float], *, slow_commands: int | None) -> Finding:
    """`latency_s`: server to the median time of a question; `slow_commands` as in SLOWLOG."""
    says = ", ".join(f"{name} {taken * 1000:.2g} ms" for name, taken in latency_s.items())
    if slow_commands:
        says += f"; {slow_commands} in SLOWLOG"
    if max(latency_s.values()) <= SLOW_S:
        return ok("latency", says)
    return warning(
        "latency",
        says,
        "Every event and every line of progress waits for an answer this long.",
        "run Headrace in the region of its servers; look for what else loads them",
    )
