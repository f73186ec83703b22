"""`EventStore.append` beside raw `XADD` by the same client on the same server.

The raw side writes the same fields into one stream per partition and does nothing else: no version,
no owner, no second stream, no bell. It is the ceiling, not a rival.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import anyio

from benchmarks.rows import Round, Row, compared
from benchmarks.servers import Target
from eventstore import EventStore
from schemas import JobRef, NewEvent, Phase, format_time
from schemas.events import JobQueued, Known, PhaseStarted

ROUNDS = 3
EVENTS = 4_000
TENANTS = 16
BATCH = 8

Write = Callable[[int], Awaitable[None]]


def bench_append(target: Target, *, events: int = EVENTS) -> list[Row]:
    """Sequential, sixteen at once, and eight events an append; `events` a round and side."""
    return target.measure(partial(_measure, events))


async def _measure(events: int, store: EventStore) -> list[Row]:
    rows: list[Row] = []
    for metric, writers, batch, beside in (
        ("append_sequential", 1, 1, "XADD"),
        ("append_concurrent16", TENANTS, 1, "XADD, 16 at once"),
        ("append_batched", 1, BATCH, "XADD, pipelines of 8"),
    ):
        ours: list[Round] = []
        theirs: list[Round] = []
        for _ in range(ROUNDS):  # alternating: both sides see the same weather
            theirs.append(await _round(_raw_writers(store, writers, batch), batch, events))
            ours.append(await _round(await _appenders(store, writers, batch), batch, events))
        rows += compared(metric, ours, beside, theirs)
    return rows


async def _round(writers: list[Write], batch: int, events: int) -> Round:
    latencies_ms: list[float] = []
    calls = events // batch // len(writers)

    async def write(one: Write) -> None:
        for number in range(calls):
            began = time.perf_counter()
            await one(number)
            latencies_ms.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for one in writers:
            tasks.start_soon(write, one)
    return Round(calls * batch * len(writers) / (time.perf_counter() - began), latencies_ms)


async def _appenders(store: EventStore, writers: int, batch: int) -> list[Write]:
    """One fresh job per writer, each of another tenant; its creation is not measured."""

    async def appender(number: int) -> Write:
        tenant = f"tenant-{number}"
        ref = JobRef(tenant, str(uuid4()))
        queued = JobQueued(tenant=tenant, user_id="u", project_id="p", goal="a list")
        await store.append(ref, "p", [_event(queued)], expected_version=0)

        async def write(call: int) -> None:
            events = [_event(PhaseStarted(phase=Phase.CODE)) for _ in range(batch)]
            await store.append(ref, "p", events, expected_version=1 + call * batch)

        return write

    return [await appender(number) for number in range(writers)]


def _raw_writers(store: EventStore, writers: int, batch: int) -> list[Write]:
    def writer(number: int) -> Write:
        tenant, job = f"tenant-{number}", str(uuid4())
        stream = f"raw:{store.partition(tenant)}"

        async def write(call: int) -> None:
            if batch == 1:
                await store.redis.xadd(stream, _fields(tenant, job, call))
                return
            pipeline = store.redis.pipeline(transaction=False)
            for offset in range(batch):
                pipeline.xadd(stream, _fields(tenant, job, call * batch + offset))
            await pipeline.execute()

        return write

    return [writer(number) for number in range(writers)]


def _event(payload: Known) -> NewEvent:
    return NewEvent(id=str(uuid4()), time=datetime.now(UTC), payload=payload)


def _fields(tenant: str, job: str, version: int) -> dict[Any, Any]:
    event = _event(PhaseStarted(phase=Phase.CODE))
    return {
        "id": event.id,
        "type": event.payload.type,
        "tenant": tenant,
        "project": "p",
        "job": job,
        "version": version,
        "time": format_time(event.time),
        "cause": event.cause,
        "trace": event.trace,
        "data": event.data,
    }
