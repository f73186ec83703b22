"""Whole jobs through real worker processes: how many, how soon, and what becomes of them.

The simulated loop is the whole state machine, claim, lease and cancel watch included, with nothing
to write and no sandbox. Each of its transitions is an event in the log before the next one is
begun, except that a phase that is done and the one behind it go there together, as in any build.
"""

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from statistics import median, quantiles

import anyio
import anyio.lowlevel
from uuid6 import uuid7

from benchmarks.append import PIPELINED, raw_round
from benchmarks.builds import TENANTS, held
from benchmarks.cores import busy_s
from benchmarks.peers import DBOS, TASKIQ, Peers
from benchmarks.rows import ROUNDS, Row, Say, silent
from benchmarks.servers import Target
from benchmarks.worker import WorkerProcess, workers
from eventstore import CommandHandler, EventStore, Hub, JobEvent, connect_redis, follow
from schemas import JobRef, RecordedEvent
from schemas.commands import RequestBuild, RequestCancel
from schemas.events import (
    TERMINAL_TYPES,
    JobCancelled,
    JobQueued,
    JobReady,
    JobStarted,
    PhaseStarted,
)
from service.embedded import Servers

EVENTS = 55_000
EVENTS_A_JOB = 11
SLOTS = 64
PROJECTS = 8
LEASE_S = 2.0
BUSY_S = 60.0
KILLED_AFTER_S = 1.5
SINGLE_JOBS = 200
PEER_IS_SLOWER = 5
"""So many times fewer workflows than jobs, so that both take about as long."""
_PEERS = (
    ("dbos", DBOS, f"DBOS, workflows of {EVENTS_A_JOB - 1} steps"),
    ("taskiq", TASKIQ, "taskiq, jobs that do nothing"),
)
_LOOK_S = 0.03
_BLOCKS_S = 0.1


def bench_jobs(target: Target, say: Say = silent, *, events: int = EVENTS) -> list[Row]:
    """How many jobs a second go from queued to READY, and what a person waits for.

    - fsm_jobs: `events` / 11 queued jobs of sixteen tenants, each with eight projects, through one
      worker of 64 slots, beside raw `XADD` of as many entries in pipelines of 32; fsm_transitions
      are its events, the queueing not counted.
    - fsm_jobs_one_project: the same for one project, where builds wait for each other's number.
    - fsm_jobs_two_workers: through two worker processes.
    - fsm_jobs_busy_cores: how many cores one worker, this process and the servers that it has
      started keep busy in fsm_jobs, beside those there are: a second worker has what is left.
    - fsm_jobs_dbos, fsm_jobs_taskiq, with peers: fsm_jobs beside workflows of DBOS with as many
      steps as a job has transitions, and beside jobs of taskiq that do nothing, 32 at once.
    - queue_wait_p50_ms: from JobQueued to JobStarted, as they are stamped when they are decided, by
      a worker that has nothing to do, one after the other: the append of the first and the claim
      lie between. Beside raw `XADD` and a blocked `XREAD` in the same process.
    - queue_wait_taskiq, with peers: beside a job of taskiq, from before it is sent to its first
      line in a worker of its own process. Nothing is written between but the job itself.
    - first_event_p99_ms: from the request to its first event at a follower in the same process.
    - takeover_leases: the longest of eight jobs, from the kill of their worker 1.5 s after their
      start to their start by another, in leases of 2 s.
    - cancel_p99_ms: from the request to `JobCancelled` at a follower, while the runner runs.
    """
    jobs = max(events // EVENTS_A_JOB, ROUNDS)
    return target.measure(partial(_measure, jobs, say, target.with_peers))


async def _measure(
    jobs: int, say: Say, with_peers: bool, store: EventStore, servers: Servers
) -> list[Row]:
    peers = Peers(servers, say) if with_peers else None
    with workers(2, servers, slots=SLOTS) as pair:
        # Before the servers have the rounds behind them, of which the files are rewritten.
        say("queue_wait, first_event: one job after the other")
        async with _listening(store, servers) as hub:
            singly = await _singly(min(jobs, SINGLE_JOBS), hub, pair[0], peers)
        # Nobody follows these: who does takes a third of a core from the workers.
        rows = [*await _throughput(jobs, say, store, pair, peers), *singly]
    with workers(2, servers, slots=SLOTS, lease_s=LEASE_S, busy_s=BUSY_S) as pair:
        async with _listening(store, servers) as hub:
            say("takeover: a worker is killed")
            rows += await _taken_over(hub, pair)
            say("cancel: one job after the other")
            rows += await _cancelled(min(jobs, SINGLE_JOBS), hub)
    return rows


async def _throughput(
    jobs: int, say: Say, store: EventStore, pair: Sequence[WorkerProcess], peers: Peers | None
) -> list[Row]:
    theirs: dict[str, list[float]] = {DBOS: [], TASKIQ: []}
    raw: list[float] = []
    one: list[float] = []
    busy: list[float] = []
    one_project: list[float] = []
    two: list[float] = []
    for number in range(1, ROUNDS + 1):
        say(f"fsm_jobs: round {number} of {ROUNDS}")
        beside = await raw_round(store, PIPELINED, jobs * EVENTS_A_JOB)
        raw.append(beside.events_per_s / EVENTS_A_JOB)
        rate, cores = await _rate(store, jobs, pair[:1], TENANTS, PROJECTS)
        one.append(rate)
        busy.append(cores)
        one_project.append((await _rate(store, jobs, pair[:1], TENANTS[:1], 1))[0])
        two.append((await _rate(store, jobs, pair, TENANTS, PROJECTS))[0])
        if peers:
            few = max(jobs // PEER_IS_SLOWER, ROUNDS)
            theirs[DBOS].append(await peers.rate(DBOS, jobs=few, steps=EVENTS_A_JOB - 1))
            theirs[TASKIQ].append(await peers.rate(TASKIQ, jobs=jobs))
    rate, appended = median(one), EVENTS_A_JOB - 1
    there = len(os.sched_getaffinity(0))
    entries = "XADD of as many entries, pipelines of 32"
    return [
        Row("fsm_jobs", round(rate, 1), "jobs/s", entries, round(median(raw), 1)),
        Row(
            "fsm_transitions",
            round(rate * appended, 1),
            "events/s",
            entries,
            round(median(raw) * EVENTS_A_JOB, 1),
        ),
        Row(
            "fsm_jobs_one_project",
            round(median(one_project), 1),
            "jobs/s",
            "in many projects",
            round(rate, 1),
        ),
        Row("fsm_jobs_two_workers", round(median(two), 1), "jobs/s", "with one", round(rate, 1)),
        Row("fsm_jobs_busy_cores", round(median(busy), 2), "cores", "cores there are", there),
        *(
            Row(f"fsm_jobs_{name}", round(rate, 1), "jobs/s", what, round(median(theirs[peer]), 1))
            for name, peer, what in _PEERS
            if peers
        ),
    ]


async def _rate(
    store: EventStore,
    jobs: int,
    going: Sequence[WorkerProcess],
    tenants: Sequence[str],
    projects: int,
) -> tuple[float, float]:
    """Jobs a second, from the moment that all are queued and the workers begin; busy cores."""
    handler = CommandHandler(store)

    async def queue(tenant: str, count: int) -> None:
        for number in range(count):
            await handler.handle(*_request(tenant, f"p{number % projects}"))

    async with anyio.create_task_group() as tasks:
        for number, tenant in enumerate(tenants):
            tasks.start_soon(queue, tenant, len(range(number, jobs, len(tenants))))
    ends_with = await held(store) + jobs * (EVENTS_A_JOB - 1)
    began, used_s = time.perf_counter(), busy_s()
    for worker in going:
        worker.go()
    while await held(store) < ends_with:  # noqa: ASYNC110 - it is in other processes
        await anyio.sleep(_LOOK_S)
    took_s = time.perf_counter() - began
    cores = (busy_s() - used_s) / took_s
    for worker in going:
        worker.rest()
    return jobs / took_s, cores


def _request(tenant: str, project: str) -> tuple[JobRef, RequestBuild]:
    return JobRef(tenant, str(uuid7())), RequestBuild(tenant, "u", project, "a todo list for two")


async def _singly(jobs: int, hub: Hub, worker: WorkerProcess, peers: Peers | None) -> list[Row]:
    waits_ms: list[float] = []
    firsts_ms: list[float] = []
    raw_ms = [await _raw_wake(hub) for _ in range(jobs)]
    worker.go()
    for number in range(jobs):
        ref, request = _request(TENANTS[number % len(TENANTS)], "single")
        started: RecordedEvent | None = None
        queued: RecordedEvent | None = None
        async with _followed(hub, ref) as events:
            began = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(CommandHandler(hub.store).handle, ref, request)
                async for event in events:
                    if isinstance(event.payload, JobQueued):
                        queued = event
                        firsts_ms.append((time.perf_counter() - began) * 1000)
                    elif isinstance(event.payload, JobStarted):
                        started = event
                    elif isinstance(event.payload, JobReady):
                        break
        assert queued and started  # noqa: S101, PT018 - there is no READY without
        waits_ms.append((started.time - queued.time).total_seconds() * 1000)
    worker.rest()
    first_ms = _p99(firsts_ms)
    wait_ms, raw = round(median(waits_ms), 3), round(median(raw_ms), 3)
    rows = [
        Row("queue_wait_p50_ms", wait_ms, "ms", "XADD to blocked XREAD", raw),
        Row("first_event_p99_ms", first_ms, "ms", "the limit", 50.0),
    ]
    if peers:
        theirs = round(await peers.wait_p50_ms(TASKIQ, jobs), 3)
        rows.append(Row("queue_wait_taskiq", wait_ms, "ms", "taskiq, jobs that do nothing", theirs))
    return rows


async def _raw_wake(hub: Hub) -> float:
    """How long a blocked reader waits for an entry, in ms."""
    redis, took_ms = hub.store.redis, 0.0

    async def read() -> None:
        nonlocal took_ms
        await redis.xread({"raw:wake": end}, block=10_000)
        took_ms = (time.perf_counter() - began) * 1000

    async def blocked() -> int:
        return int((await redis.info("clients"))["blocked_clients"])

    end = await redis.xadd("raw:wake", {"job": "-"}, maxlen=10)
    before = await blocked()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        with anyio.move_on_after(_BLOCKS_S):
            # The hubs' own come and go once a second.
            while await blocked() <= before:
                await anyio.lowlevel.checkpoint()
        began = time.perf_counter()
        await redis.xadd("raw:wake", {"job": "-"}, maxlen=10)
    return took_ms


async def _taken_over(hub: Hub, pair: Sequence[WorkerProcess]) -> list[Row]:
    handler, refs = CommandHandler(hub.store), []
    pair[0].go()
    for tenant in TENANTS[:8]:
        ref, request = _request(tenant, "taken-over")
        await handler.handle(ref, request)
        refs.append(ref)
    for ref in refs:
        await _until(hub, ref, JobStarted)
    pair[1].go()
    await anyio.sleep(KILLED_AFTER_S)
    killed = datetime.now(UTC)
    pair[0].kill()
    leases = [
        ((await _until(hub, ref, JobStarted, after=2)).time - killed).total_seconds() / LEASE_S
        for ref in refs
    ]
    for ref in refs:
        await handler.handle(ref, RequestCancel("u", "measured"))
    return [Row("takeover_leases", round(max(leases), 3), "leases", "the limit", 1.3)]


async def _cancelled(jobs: int, hub: Hub) -> list[Row]:
    handler = CommandHandler(hub.store)
    took_ms: list[float] = []
    for number in range(jobs):
        ref, request = _request(TENANTS[number % len(TENANTS)], "cancelled")
        await handler.handle(ref, request)
        async with _followed(hub, ref) as events:
            async for event in events:
                if isinstance(event.payload, PhaseStarted) and event.payload.phase == "code":
                    began = time.perf_counter()
                    await handler.handle(ref, RequestCancel("u", "measured"))
                elif isinstance(event.payload, JobCancelled):
                    took_ms.append((time.perf_counter() - began) * 1000)
                    break
                elif event.type in TERMINAL_TYPES:
                    raise RuntimeError(f"the job to be cancelled ended before: {event.payload}")
    return [Row("cancel_p99_ms", _p99(took_ms), "ms", "the limit", 1_000.0)]


async def _until(hub: Hub, ref: JobRef, kind: type[JobStarted], *, after: int = 0) -> RecordedEvent:
    """The first event of that kind behind version `after`."""
    async with _followed(hub, ref, after=after) as events:
        async for event in events:
            if isinstance(event.payload, kind):
                return event
    raise AssertionError("a follower ends only with its caller")


@asynccontextmanager
async def _followed(
    hub: Hub, ref: JobRef, *, after: int = 0
) -> AsyncIterator[AsyncIterator[RecordedEvent]]:
    async def events() -> AsyncIterator[RecordedEvent]:
        async with aclosing(follow(hub, ref, f"{after}-0")) as entries:
            async for entry in entries:
                if isinstance(entry, JobEvent):
                    yield entry.event

    following = events()
    try:
        yield following
    finally:
        await following.aclose()  # type: ignore[attr-defined]


@asynccontextmanager
async def _listening(store: EventStore, servers: Servers) -> AsyncIterator[Hub]:
    bells = connect_redis(servers.redis_url)
    try:
        async with anyio.create_task_group() as tasks:
            hub = Hub(store, bells)
            tasks.start_soon(hub.run)
            yield hub
            tasks.cancel_scope.cancel()
    finally:
        await bells.aclose()


def _p99(latencies_ms: Sequence[float]) -> float:
    return round(quantiles(latencies_ms, n=100)[98], 3)
