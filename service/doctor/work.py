"""Whether jobs get on: who works, what waits, what was left behind."""

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from eventstore.keys import GROUP, Keys
from service.doctor.finding import Finding, count, duration, ok, problem, warning

CLASSES = ("high", "normal")
LEASES = 2
"""Idle this many leases: the second one is time enough for another worker to take it over."""
MOST_COUNTED = 1000


@dataclass(frozen=True, slots=True)
class Workload:
    """What the work streams of all partitions say together."""

    alive: int
    """Jobs that are not over."""
    held: int
    """Jobs that a worker claimed."""
    queued: int
    """Jobs that may run and that nobody has claimed yet."""
    waiting: int
    """Jobs behind the cap of their tenant."""
    stuck: int
    """Claimed jobs whose worker has been silent for more than two leases."""
    workers: int
    """Workers that were heard of within two leases."""
    gone: int
    """Names of workers that have ended; nobody is hurt by them."""


async def read_workload(redis: Redis, partitions: int, *, lease_ms: int) -> Workload:
    """The workload of all partitions; a partition that was not made yet has none."""
    alive = held = queued = waiting = stuck = 0
    idle_ms: dict[str, int] = {}
    for keys in map(Keys, range(partitions)):
        alive += int(await redis.hlen(keys.runs))
        waiting += await _waiting(redis, keys)
        for work in map(keys.work, CLASSES):
            try:
                pending: Any = await redis.xpending(work, GROUP)
                left: Any = await redis.xpending_range(
                    work, GROUP, "-", "+", MOST_COUNTED, idle=LEASES * lease_ms
                )
                consumers: Any = await redis.xinfo_consumers(work, GROUP)
            except ResponseError:  # no such stream or group
                continue
            held += pending["pending"]
            queued += int(await redis.xlen(work)) - pending["pending"]
            stuck += len(left)
            for consumer in consumers:
                name = consumer["name"].decode()
                idle_ms[name] = min(consumer["idle"], idle_ms.get(name, consumer["idle"]))
    workers = sum(idle < LEASES * lease_ms for idle in idle_ms.values())
    return Workload(alive, held, queued, waiting, stuck, workers, len(idle_ms) - workers)


async def _waiting(redis: Redis, keys: Keys) -> int:
    tenants: Any = await redis.hkeys(keys.tenants)
    pipeline = redis.pipeline(transaction=False)
    for tenant in tenants:
        pipeline.zcard(keys.waiting(tenant.decode()))
    return sum(await pipeline.execute())


def judge_workload(load: Workload, *, lease_s: float, at_rest: bool) -> Finding:
    """`at_rest`: no Headrace runs on these servers, so what waits waits for the next start."""
    parts = [
        f"{load.held} running" if load.held else "",
        f"{load.queued} queued" if load.queued else "",
        f"{load.waiting} behind their tenants' caps" if load.waiting else "",
    ]
    jobs = count(load.alive, "job")
    details = ", ".join(filter(None, parts))
    says = f"{jobs}: {details}" if details else "no job waits or runs" if not load.alive else jobs
    if at_rest:
        return ok("work", f"{says}; the next start goes on" if load.alive else says)
    workers = f"{says}; {count(load.workers, 'worker')} heard from"
    if not load.workers:
        if not load.alive:
            return ok("work", f"{says}; no worker runs")
        return problem("work", workers, "No worker runs, so no job gets on.", "./headrace up")
    if load.stuck:
        silent = duration(LEASES * lease_s)
        return warning(
            "work",
            f"{workers}; {load.stuck} left behind for more than {silent}",
            "Their workers are gone, and none of the others has taken them over: all slots are "
            "taken, or their lease is longer than HEADRACE_LEASE_S says here.",
            "./headrace up with a larger HEADRACE_SLOTS, or on another machine",
        )
    gone = f", {load.gone} gone" if load.gone else ""
    return ok("work", workers + gone)
