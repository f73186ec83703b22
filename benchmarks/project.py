"""The projector beside what it cannot be faster than: reading alone, and writing alone.

Both ceilings do half of its work with its own functions. Reading takes the log in the same batches
and decodes it. Writing copies the same events into the archive and upserts the same rows, folded
before the clock runs, in as many transactions.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

import anyio
import anyio.to_process
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.builds import (
    PROJECT,
    TENANTS,
    fill,
    from_start_to_ready,
    held,
    new_event,
    queue_job,
)
from benchmarks.peers import EVENTSOURCING, FOLDING, PEER_EVENTS, Peers
from benchmarks.rows import ROUNDS, Round, Row, Say, compared, silent
from benchmarks.servers import NO_CAP, Target
from eventstore import Archive, EventStore, Hub, LogEntry, connect_postgres, connect_redis, open_log
from projector import Projector
from projector.folding import Rows, fold_entries
from projector.projections import PROJECTIONS
from projector.projector import MOST
from projector.tables import metadata
from projector.writing import checkpoint_rows, checkpoints_of, copy_events, write_rows
from schemas import Job, Position, decode_or_mark
from service.collector import settle
from service.embedded import Servers

EVENTS = 200_000
LOAD_PER_S = 2_000
LIMIT_MS = 50.0
_LOOKS_MS = 5
_LOAD_SHARE = 10

Work = Callable[[int], Coroutine[None, None, None]]


def bench_project(target: Target, say: Say = silent, *, events: int = EVENTS) -> list[Row]:
    """How fast a projector folds what stands in the log, and how far it is behind a steady load.

    - live: events a second into archive and read model, one process, beside the ceiling: reading
      and writing alone, one after the other, as one process must.
    - live_reading, live_writing: the same beside either alone.
    - live_eventsourcing, with peers: live beside a projection of eventsourcing into a table like
      `jobs`, committed after each event. Both stand behind their events when they begin: the peer
      behind 6,000, in builds of twelve.
    - lag_p99_ms: from the acknowledged append to the commit, at 2,000 events a second in builds of
      twelve, beside a limit of 50 ms; a tenth of `events`.
    """
    return target.measure(partial(_measure, events, say, target.with_peers))


async def _measure(
    events: int, say: Say, with_peers: bool, store: EventStore, servers: Servers
) -> list[Row]:
    peers = Peers(servers, say) if with_peers else None
    engine = connect_postgres(servers.database_url, pool_size=store.partitions + 2)
    try:
        await fill(store, events, say)
        ours: list[Round] = []
        reading: list[Round] = []
        writing: list[Round] = []
        theirs: list[float] = []
        batches = [await _batches(store, number) for number in range(store.partitions)]
        settle()  # what is written alone is held for it, and no business of the collector's
        for number in range(1, ROUNDS + 1):
            say(f"live: round {number} of {ROUNDS}")
            reading.append(await _round(store, partial(_read, store)))
            await _empty(engine)
            writing.append(await _round(store, partial(_write, engine, batches)))
            await _empty(engine)
            projector = Projector(store, engine)
            ours.append(await _round(store, partial(_fold, projector)))
            if peers:
                say(f"live: round {number} of {ROUNDS}, eventsourcing")
                few = min(events, PEER_EVENTS)
                theirs.append(await peers.rate(EVENTSOURCING, events=few, rebuild=False))
        both = [
            Round(1 / (1 / one.events_per_s + 1 / other.events_per_s), one.latencies_ms)
            for one, other in zip(reading, writing, strict=True)
        ]
        rows = [
            compared(metric, ours, beside, theirs)[0]
            for metric, beside, theirs in (
                ("live", "reading, then writing", both),
                ("live_reading", "reading and decoding", reading),
                ("live_writing", "COPY and upsert", writing),
            )
        ]
        if peers:
            live, beside = rows[0].value, round(median(theirs), 3)
            rows.append(Row("live_eventsourcing", live, "events/s", FOLDING, beside))
        say("lag: under load")
        return [*rows, await _lag(store, servers, engine, events // _LOAD_SHARE)]
    finally:
        await engine.dispose()


async def _round(store: EventStore, work: Work) -> Round:
    """All partitions at once, as a projector has them."""
    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number in range(store.partitions):
            tasks.start_soon(work, number)
    took = time.perf_counter() - began
    return Round(await held(store) / took, [took * 1000, took * 1000])


async def _fold(projector: Projector, partition: int) -> None:
    while await projector.fold_batch(partition):
        pass


async def _read(store: EventStore, partition: int) -> None:
    after: Position | None = None
    while entries := await store.read_log(partition, after, count=MOST, decode=decode_or_mark):
        after = entries[-1].position


@dataclass(frozen=True, slots=True)
class _Batch:
    entries: list[LogEntry]
    rows: Rows


async def _batches(store: EventStore, partition: int) -> list[_Batch]:
    """A partition's events with the rows that they lead to."""
    states: dict[str, Job] = {}
    after: Position | None = None
    found: list[_Batch] = []
    while entries := await store.read_log(partition, after, count=MOST, decode=decode_or_mark):
        after = entries[-1].position
        found.append(_Batch(entries, fold_entries(PROJECTIONS, entries, states, {}).rows()))
    return found


async def _write(engine: AsyncEngine, batches: list[list[_Batch]], partition: int) -> None:
    for batch in batches[partition]:
        async with engine.begin() as connection:
            await connection.execute(text("SET LOCAL synchronous_commit = on"))
            await write_rows(connection, batch.rows | checkpoint_rows([batch.entries[-1].position]))
            await copy_events(connection, batch.entries)


async def _empty(engine: AsyncEngine) -> None:
    tables = ", ".join([table.name for table in metadata.sorted_tables])
    async with engine.begin() as connection:
        await connection.execute(text(f"TRUNCATE {tables}, headrace.events"))
    async with engine.connect() as connection:
        settled = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await settled.execute(text("CHECKPOINT"))


async def _lag(store: EventStore, servers: Servers, engine: AsyncEngine, events: int) -> Row:
    bells = connect_redis(servers.redis_url)
    hub = Hub(store, bells)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.run)
            tasks.start_soon(Projector(store, engine).run, hub)
            # By another process: one alone does not reach the load and fold it too.
            with anyio.fail_after(600):
                lags_ms = await anyio.to_process.run_sync(
                    _lags_ms, servers, store.partitions, max(events, 1_000), cancellable=True
                )
            tasks.cancel_scope.cancel()
    finally:
        await bells.aclose()
    return Row("lag_p99_ms", round(quantiles(lags_ms, n=100)[98], 3), "ms", "limit", LIMIT_MS)


def _lags_ms(servers: Servers, partitions: int, events: int) -> list[float]:
    """Append, and look when it was folded; how long each took."""
    return asyncio.run(_measured(servers, partitions, events))


async def _measured(servers: Servers, partitions: int, events: int) -> list[float]:
    appended: list[tuple[float, Position]] = []
    loaded = anyio.Event()
    redis, engine = connect_redis(servers.redis_url), connect_postgres(servers.database_url)
    try:
        store = await open_log(redis, Archive(engine), partitions=partitions, tenant_cap=NO_CAP)
        settle()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_load, store, events, appended, loaded)
            seen = await _seen(engine, appended, loaded)
    finally:
        await redis.aclose()
        await engine.dispose()
    return [
        1000 * (next(at for at, ends in seen if _reached(ends, position)) - began)
        for began, position in appended
    ]


async def _seen(
    engine: AsyncEngine, appended: list[tuple[float, Position]], loaded: anyio.Event
) -> list[tuple[float, Mapping[int, Position]]]:
    """The checkpoints every few milliseconds, until all that was appended is behind them."""
    seen: list[tuple[float, Mapping[int, Position]]] = []
    # One connection, which begins no transaction: it must cost less than what is looked at.
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("SELECT 1"))
        while True:
            seen.append((time.perf_counter(), await checkpoints_of(connection)))
            if loaded.is_set() and all(_reached(seen[-1][1], position) for _, position in appended):
                return seen
            await anyio.sleep(_LOOKS_MS / 1000)


async def _load(
    store: EventStore, events: int, appended: list[tuple[float, Position]], loaded: anyio.Event
) -> None:
    """Whole builds, evenly over time and tenants: a queued job, then the rest of it."""
    numbers = {tenant: await store.last_build_number(tenant, PROJECT) for tenant in TENANTS}
    rest = from_start_to_ready(1)
    each_s = (1 + len(rest)) / LOAD_PER_S
    began = time.perf_counter()
    for build in range(events // (1 + len(rest))):
        tenant = TENANTS[build % len(TENANTS)]
        numbers[tenant] += 1
        ref = await queue_job(store, tenant)
        at = await store.append(
            ref,
            PROJECT,
            [new_event(payload) for payload in from_start_to_ready(numbers[tenant])],
            expected_version=1,
            build_number=numbers[tenant],
        )
        appended.append((time.perf_counter(), at.position))
        await anyio.sleep(max(0.0, began + (build + 1) * each_s - time.perf_counter()))
    loaded.set()


def _reached(ends: Mapping[int, Position], position: Position) -> bool:
    return position.partition in ends and ends[position.partition] >= position
