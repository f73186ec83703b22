"""`EventStore.append` beside raw `XADD` by the same client on the same server.

The raw side writes the same fields into one stream per partition and does nothing else: no version,
no owner, no second stream, no bell. It is the ceiling, not a rival. Both sides write for sixteen
tenants, one after another or at once.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any
from uuid import uuid4

import anyio

from benchmarks.builds import PROJECT, TENANTS, fill, new_event, queue_job
from benchmarks.rows import ROUNDS, Round, Row, Say, compared, silent
from benchmarks.servers import Target
from eventstore import EventStore
from schemas import Phase, format_time
from schemas.events import PhaseStarted
from service.embedded import Servers

EVENTS = 1_000_000
SMALL = 10_000
"""The size of log that growth is measured from, or a hundredth of `events` if that is less."""
ROUND = 250
"""A round writes so small a part of `events`: 4,000 of a million."""

Write = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Shape:
    """How both sides write: `callers` at once, each `batch` events to one job in one call.

    `one_pipeline`: raw `XADD` does not send them as so many callers, but as one pipeline.
    """

    metric: str
    beside: str
    callers: int = 1
    batch: int = 1
    one_pipeline: bool = False


SEQUENTIAL = Shape("append_sequential", "XADD")
CONCURRENT = Shape("append_concurrent16", "XADD, 16 at once", callers=16)
PIPELINED = Shape("append_single_pipelined", "XADD, pipelines of 32", callers=32, one_pipeline=True)
BATCHED = Shape("append_batched", "XADD, pipelines of 8", batch=8)


def bench_append(target: Target, say: Say = silent, *, events: int = EVENTS) -> list[Row]:
    """How many events a second are appended, and whether that falls while the log grows.

    - append_sequential: one event after the other is appended and acknowledged.
    - append_concurrent16: sixteen callers do that at once.
    - append_single_pipelined: one caller keeps 32 appends of one event, to 32 jobs, under way,
      beside 32 single entries in one pipeline without transaction. Pipelines are the best that the
      client has for this, one write and one read for 32 entries. An append under way takes a
      connection of the store's pool instead, as in every process of Headrace: each may be refused,
      and is acknowledged, by itself.
    - append_batched: eight events an append, beside pipelines of eight: events to events.
    - append_growth: sixteen callers on a log of `events`, beside the same on a log of ten thousand
      (at most a hundredth); append_growth_tenth in between. Whole builds fill it. A rewrite of the
      AOF, which the fill sets off, is waited for.
    """
    return target.measure(partial(_measure, events, say))


async def _measure(events: int, say: Say, store: EventStore, _: Servers) -> list[Row]:
    in_a_round = max(events // ROUND, 2 * PIPELINED.callers)
    rows: list[Row] = []
    growth = await _growth(store, events, in_a_round, say)
    for shape in (SEQUENTIAL, CONCURRENT, PIPELINED, BATCHED):
        ours: list[Round] = []
        theirs: list[Round] = []
        for number in range(1, ROUNDS + 1):  # alternating: both sides see the same weather
            say(f"{shape.metric}: round {number} of {ROUNDS}")
            theirs.append(await raw_round(store, shape, in_a_round))
            ours.append(await append_round(store, shape, in_a_round))
        rows += compared(shape.metric, ours, shape.beside, theirs)
    return [*rows, *growth]


async def _growth(store: EventStore, events: int, in_a_round: int, say: Say) -> list[Row]:
    async def rate_with(size: int) -> float:
        await fill(store, size, say)
        await _rewritten(store)
        rounds: list[Round] = []
        for number in range(1, ROUNDS + 1):
            say(f"append_growth: {size:,} events, round {number} of {ROUNDS}")
            rounds.append(await append_round(store, CONCURRENT, in_a_round))
        return round(median(one.events_per_s for one in rounds), 3)

    first = min(events // 100, SMALL)
    small, tenth, whole = [await rate_with(size) for size in (first, events // 10, events)]
    beside = f"with {first:,} events"
    return [
        Row("append_growth_tenth", tenth, "events/s", beside, small),
        Row("append_growth", whole, "events/s", beside, small),
    ]


async def _rewritten(store: EventStore) -> None:
    while True:
        found: dict[str, Any] = await store.redis.info("persistence")
        if not (found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"]):
            return
        await anyio.sleep(0.1)


async def append_round(store: EventStore, shape: Shape, events: int) -> Round:
    """Fresh jobs, whose making is not measured; a caller goes from one tenant's to the next's."""

    async def appender(caller: int) -> Write:
        tenants = _tenants(shape, caller)
        refs = [await queue_job(store, tenant) for tenant in tenants]

        async def write(call: int) -> None:
            round_trip, at = divmod(call, len(refs))
            batch = [new_event(PhaseStarted(phase=Phase.CODE)) for _ in range(shape.batch)]
            version = 1 + round_trip * shape.batch
            await store.append(refs[at], PROJECT, batch, expected_version=version)

        return write

    writers = [await appender(caller) for caller in range(shape.callers)]
    return await _round(writers, shape.batch, events)


async def raw_round(store: EventStore, shape: Shape, events: int) -> Round:
    job = str(uuid4())

    def writer(calls: Sequence[Sequence[str]]) -> Write:
        """Writes one call after the other, and again from the first: the tenants of its entries."""

        async def write(call: int) -> None:
            entries = [
                (f"raw:{store.partition(tenant)}", _fields(tenant, job, call))
                for tenant in calls[call % len(calls)]
            ]
            if len(entries) == 1:
                await store.redis.xadd(*entries[0])
                return
            pipeline = store.redis.pipeline(transaction=False)
            for entry in entries:
                pipeline.xadd(*entry)
            await pipeline.execute()

        return write

    callers = [_tenants(shape, caller) for caller in range(shape.callers)]
    if shape.one_pipeline:
        return await _round([writer([[tenants[0] for tenants in callers]])], len(callers), events)
    writers = [writer([[tenant] * shape.batch for tenant in tenants]) for tenants in callers]
    return await _round(writers, shape.batch, events)


def _tenants(shape: Shape, caller: int) -> list[str]:
    """Whom a caller writes for: one for all, or as many as there are for theirs."""
    return TENANTS if shape.callers == 1 else [TENANTS[caller % len(TENANTS)]]


async def _round(writers: Sequence[Write], events_a_call: int, events: int) -> Round:
    latencies_ms: list[float] = []
    calls = max(1, events // events_a_call // len(writers))

    async def write(one: Write) -> None:
        for number in range(calls):
            began = time.perf_counter()
            await one(number)
            latencies_ms.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for one in writers:
            tasks.start_soon(write, one)
    written = calls * events_a_call * len(writers)
    return Round(written / (time.perf_counter() - began), latencies_ms)


def _fields(tenant: str, job: str, version: int) -> dict[Any, Any]:
    event = new_event(PhaseStarted(phase=Phase.CODE))
    return {
        "id": event.id,
        "type": event.payload.type,
        "tenant": tenant,
        "project": PROJECT,
        "job": job,
        "version": version,
        "time": format_time(event.time),
        "cause": event.cause,
        "trace": event.trace,
        "data": event.data,
    }
