"""Whether jobs get on: who works, what waits, what was left behind."""

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from eventstore.keys import GROUP, Keys
from service.doctor.finding import Finding, count, duration, ok, partitions, problem, warning

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
    ungrouped: tuple[int, ...] = ()
    """Partitions of which a work stream has no consumer group."""
    astray: tuple[int, ...] = ()
    """Partitions in which not every job that lives is held, queued or waiting, once."""


async def read_workload(redis: Redis, number: int, *, lease_ms: int) -> Workload:
    """The workload of all partitions, so many; one that was not made yet has none."""
    alive = held = queued = waiting = stuck = 0
    ungrouped, astray = set[int](), set[int]()
    idle_ms: dict[str, int] = {}
    for keys in map(Keys, range(number)):
        living, entries, behind_caps = await _jobs(redis, keys)
        if living != entries + behind_caps:
            astray.add(keys.partition)
        alive, queued, waiting = alive + living, queued + entries, waiting + behind_caps
        for work in map(keys.work, CLASSES):
            try:
                pending: Any = await redis.xpending(work, GROUP)
                left: Any = await redis.xpending_range(
                    work, GROUP, "-", "+", MOST_COUNTED, idle=LEASES * lease_ms
                )
                consumers: Any = await redis.xinfo_consumers(work, GROUP)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                if await redis.exists(keys.meta):
                    ungrouped.add(keys.partition)
                continue
            held += pending["pending"]
            stuck += len(left)
            for consumer in consumers:
                name = consumer["name"].decode()
                idle_ms[name] = min(consumer["idle"], idle_ms.get(name, consumer["idle"]))
    workers = sum(idle < LEASES * lease_ms for idle in idle_ms.values())
    return Workload(
        alive,
        held,
        max(0, queued - held),  # asked one after the other
        waiting,
        stuck,
        workers,
        len(idle_ms) - workers,
        tuple(sorted(ungrouped)),
        tuple(sorted(astray)),
    )


async def _jobs(redis: Redis, keys: Keys) -> tuple[int, int, int]:
    """How many jobs live, have a work entry, and wait behind a cap: all at one moment."""
    tenants = set[bytes]()
    while True:
        pipeline = redis.pipeline(transaction=True)
        pipeline.hkeys(keys.tenants)
        pipeline.hlen(keys.runs)
        for work in map(keys.work, CLASSES):
            pipeline.xlen(work)
        for tenant in tenants:
            pipeline.zcard(keys.waiting(tenant.decode()))
        there, living, high, normal, *waiting = await pipeline.execute()
        if tenants.issuperset(there):
            return living, high + normal, sum(waiting)
        tenants.update(there)


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
    if load.ungrouped:
        return problem(
            "work",
            f"{says}; a consumer group was destroyed ({partitions(load.ungrouped)})",
            "No worker is given a job there.",
            "./headrace up, anew where it runs: a start makes the group again and loses no job",
        )
    if load.astray:
        return warning(
            "work",
            f"{says}; that is not each of them once ({partitions(load.astray)})",
            "Somebody else wrote into the queues. A job that stands in none is never given to a "
            "worker, and counts against its tenant's cap.",
            "./headrace log export, and import that into an empty log, which queues every job anew",
        )
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
