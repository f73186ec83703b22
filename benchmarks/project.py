"""The projector beside what it cannot be faster than: reading alone, and writing alone.

Both ceilings do half of its work with its own functions. Reading takes the log in the same batches
and decodes it. Writing copies the same events into the archive and upserts the same rows, folded
before the clock runs, in as many transactions.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Sequence
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
from projector.writing import checkpoint_rows, copy_events, write_rows
from schemas import Job, Position, decode_or_mark
from service.collector import settle
from service.embedded import Servers

EVENTS = 200_000
LOAD_PER_S = 2_000
LIMIT_MS = 50.0
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
      twelve, beside a limit of 50 ms; a tenth of `events`, and before them as many as one second
      has, in which connections get warm.
    """
    return target.measure(partial(_measure, events, say, target.with_peers))


async def _measure(
    events: int, say: Say, with_peers: bool, store: EventStore, servers: Servers
) -> list[Row]:
    peers = Peers(servers, say) if with_peers else None
    engine = connect_postgres(servers.database_url, pool_size=store.partitions + 2)
    try:
        # Before the servers have all the rest behind them: they rewrite files, and analyse tables.
        say("lag: under load")
        lag = await _lag(store, servers, engine, events // _LOAD_SHARE)
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
        return [*rows, lag]
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
    ends = [await store.log_end(number) for number in range(store.partitions)]
    projector = _Watched(store, engine, ends)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.run)
            tasks.start_soon(projector.run, hub)
            # By another process: one alone does not reach the load and fold it too.
            with anyio.fail_after(600):
                appended = await anyio.to_process.run_sync(
                    _appended, servers, store.partitions, max(events, 1_000), cancellable=True
                )
                lags_ms = [
                    1000 * (await projector.folded_at(position) - at) for at, position in appended
                ]
            tasks.cancel_scope.cancel()
    finally:
        await bells.aclose()
    return Row("lag_p99_ms", round(quantiles(lags_ms, n=100)[98], 3), "ms", "limit", LIMIT_MS)


class _Watched(Projector):
    """Remembers when it had folded what, of logs that were folded up to these positions before.

    By a clock that all processes of a machine share; to look at the checkpoints would cost Postgres
    as much as a part of the folding.
    """

    def __init__(self, store: EventStore, engine: AsyncEngine, ends: Sequence[Position]) -> None:
        super().__init__(store, engine)
        self._moves = [[(end.seq, 0.0)] for end in ends]
        self._moved = anyio.Event()

    async def fold_batch(self, partition: int, *, rung: bool = False) -> int:
        folded = await super().fold_batch(partition, rung=rung)
        if folded:
            moves = self._moves[partition]
            moves.append((moves[-1][0] + folded, time.perf_counter()))
            self._moved.set()
            self._moved = anyio.Event()
        return folded

    async def folded_at(self, position: Position) -> float:
        """When the batch was committed that this event was in, once it is."""
        moves = self._moves[position.partition]
        while moves[-1][0] < position.seq:
            await self._moved.wait()
        return moves[bisect_left(moves, (position.seq,))][1]


Appended = list[tuple[float, Position]]
"""When an append was acknowledged, and where its last event stands."""


def _appended(servers: Servers, partitions: int, events: int) -> Appended:
    """Append so many events."""
    return asyncio.run(_append(servers, partitions, events))


async def _append(servers: Servers, partitions: int, events: int) -> Appended:
    redis, engine = connect_redis(servers.redis_url), connect_postgres(servers.database_url)
    try:
        store = await open_log(redis, Archive(engine), partitions=partitions, tenant_cap=NO_CAP)
        settle()
        return await _load(store, events)
    finally:
        await redis.aclose()
        await engine.dispose()


async def _load(store: EventStore, events: int) -> Appended:
    """Whole builds, evenly over time and tenants: a queued job, then the rest of it."""
    appended: Appended = []
    numbers = {tenant: await store.last_build_number(tenant, PROJECT) for tenant in TENANTS}
    rest = from_start_to_ready(1)
    each_s = (1 + len(rest)) / LOAD_PER_S
    warm = LOAD_PER_S // (1 + len(rest))
    began = time.perf_counter()
    for build in range(warm + events // (1 + len(rest))):
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
        if build >= warm:
            appended.append((time.perf_counter(), at.position))
        await anyio.sleep(max(0.0, began + (build + 1) * each_s - time.perf_counter()))
    return appended
