"""A rebuild beside reading and decoding the archive, and beside itself on a smaller one.

The archive is filled with whole builds without passing through a log: what is measured is what
becomes of it.
"""

import os
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median

import anyio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid6 import uuid7

from benchmarks.builds import EVENTS_A_BUILD, PROJECT, TENANTS, from_start_to_ready
from benchmarks.cores import busy_s, on_one_core
from benchmarks.peers import EVENTSOURCING, FOLDING, PEER_EVENTS, Peers
from benchmarks.rows import ROUNDS, Row, Say, silent
from benchmarks.servers import Target
from eventstore import EventStore, LogEntry, connect_postgres
from projector import rebuild
from projector.archived import EVENTS as ARCHIVE
from projector.archived import FOLDED, entry_of
from projector.folding import fold_entries
from projector.projections import PROJECTIONS
from projector.replay import processes
from projector.writing import checkpoint_rows, copy_events, driver, write_rows
from schemas import Position, RecordedEvent
from schemas.events import JobQueued
from service.embedded import Servers

EVENTS = 1_000_000
LIMIT_MS = 50.0
READ_EVERY_S = 0.02
"""Often enough to meet the swap, and seldom enough to cost the rebuild nothing."""
_FETCHED = 5_000
_BUILDS = 500


def bench_replay(target: Target, say: Say = silent, *, events: int = EVENTS) -> list[Row]:
    """How fast the read model is remade, and how long readers wait when it is replaced.

    - rebuild: events a second of an archive of `events`, in one process, beside reading and
      decoding them alone.
    - rebuild_parallel: in as many processes as there are cores (four at most), beside one core that
      does everything: one process and, where they are started for the benchmark, the servers.
    - rebuild_busy_cores: how many cores are busy in rebuild_parallel, beside those there are. Where
      it fills them, what it gains is what the machine gives to cores that are all busy.
    - rebuild_growth: the rate with `events`, beside that with a tenth (a hundred thousand of a
      million).
    - swap_wait_ms: how long a reader waited at most, beside a limit of 50 ms.
    - rebuild_eventsourcing, with peers: rebuild beside a projection of eventsourcing into a table
      like `jobs`, committed after each event, emptied and begun anew: 6,000 in builds of twelve.
    """
    return target.measure(partial(_measure, events, say, target.with_peers))


async def _measure(
    events: int, say: Say, with_peers: bool, store: EventStore, servers: Servers
) -> list[Row]:
    peers = Peers(servers, say) if with_peers else None
    engine = connect_postgres(servers.database_url)
    try:
        tenth = await _filled(engine, store, events // 10, say)
        say(f"rebuild of {tenth:,} events")
        small = median([(await _rebuilt_beside_a_reader(engine, tenth))[0] for _ in range(ROUNDS)])
        whole = await _filled(engine, store, events, say)
        ours: list[float] = []
        reading: list[float] = []
        one_core: list[float] = []
        parallel: list[float] = []
        busy: list[float] = []
        waits: list[float] = []
        theirs: list[float] = []
        for number in range(1, ROUNDS + 1):
            say(f"rebuild of {whole:,} events: round {number} of {ROUNDS}")
            reading.append(await _read(engine, whole))
            rate, wait = await _rebuilt_beside_a_reader(engine, whole)
            ours.append(rate)
            waits.append(wait)
            with on_one_core():
                one_core.append(await _rebuilt(engine, whole, 1))
            began, used_s = time.perf_counter(), busy_s()
            parallel.append(await _rebuilt(engine, whole, processes()))
            busy.append((busy_s() - used_s) / (time.perf_counter() - began))
            if peers:
                say(f"rebuild: round {number} of {ROUNDS}, eventsourcing")
                few = min(events, PEER_EVENTS)
                theirs.append(await peers.rate(EVENTSOURCING, events=few, rebuild=True))
    finally:
        await engine.dispose()
    alone, there = round(median(ours), 3), len(os.sched_getaffinity(0))
    rows = [
        Row("rebuild", alone, "events/s", "reading and decoding", round(median(reading), 3)),
        Row(
            "rebuild_parallel",
            round(median(parallel), 3),
            "events/s",
            f"one core, not {processes()}",
            round(median(one_core), 3),
        ),
        Row("rebuild_busy_cores", round(median(busy), 2), "cores", "cores there are", there),
        Row("rebuild_growth", alone, "events/s", f"with {tenth:,} events", round(small, 3)),
        Row("swap_wait_ms", round(max(waits), 3), "ms", "limit", LIMIT_MS),
    ]
    if peers:
        beside = round(median(theirs), 3)
        rows.append(Row("rebuild_eventsourcing", alone, "events/s", FOLDING, beside))
    return rows


async def _rebuilt(engine: AsyncEngine, events: int, workers: int) -> float:
    """Events a second."""
    began = time.perf_counter()
    await rebuild(engine, workers=workers)
    return events / (time.perf_counter() - began)


async def _rebuilt_beside_a_reader(engine: AsyncEngine, events: int) -> tuple[float, float]:
    """Events a second in one process, and the longest that a reader waited for the swap, in ms."""
    waits_ms: list[float] = []

    async def read() -> None:
        while True:
            began = time.perf_counter()
            async with engine.connect() as connection:
                await connection.execute(text("SELECT status FROM jobs ORDER BY id LIMIT 1"))
            waits_ms.append((time.perf_counter() - began) * 1000)
            await anyio.sleep(READ_EVERY_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        began = time.perf_counter()
        replayed = await rebuild(engine)
        took = time.perf_counter() - began
        tasks.cancel_scope.cancel()
    return events / took, max([replayed.swap_wait_ms, *waits_ms[-5:]])


async def _read(engine: AsyncEngine, events: int) -> float:
    began = time.perf_counter()
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        cursor = await (await driver(connection)).cursor(
            f"SELECT {FOLDED} FROM {ARCHIVE} ORDER BY job, epoch, seq"  # noqa: S608
        )
        while rows := await cursor.fetch(_FETCHED):
            for row in rows:
                entry_of(row)
    return events / (time.perf_counter() - began)


async def _filled(engine: AsyncEngine, store: EventStore, events: int, say: Say) -> int:
    """Archive and read model of a log of so many events, or a few more; how many."""
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT count(*) FROM headrace.events"))
        there = int(found.scalar_one())
    async for entries in _batches(engine, store, there, events):
        there += len(entries)
        say(f"filling the archive: {there:,} of {events:,} events")
    async with engine.connect() as connection:
        settled = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await settled.execute(text("VACUUM ANALYZE headrace.events"))
        await settled.execute(text("CHECKPOINT"))
    return there


async def _batches(
    engine: AsyncEngine, store: EventStore, there: int, events: int
) -> AsyncIterator[Sequence[LogEntry]]:
    ends = dict.fromkeys(range(store.partitions), 0)
    numbers = dict.fromkeys(TENANTS, 0)
    async with engine.connect() as connection:
        for partition, seq in await connection.execute(
            text("SELECT partition, max(seq) FROM headrace.events GROUP BY partition")
        ):
            ends[partition] = seq
        for tenant, number in await connection.execute(
            text("SELECT tenant, max(number) FROM builds GROUP BY tenant")
        ):
            numbers[tenant] = number
    while there < events:
        builds = max(1, min(_BUILDS, (events - there) // EVENTS_A_BUILD))
        entries = [
            entry
            for build in range(builds)
            for entry in _build(store, TENANTS[build % len(TENANTS)], ends, numbers)
        ]
        entries.sort(key=lambda entry: entry.position)
        async with engine.begin() as connection:
            await connection.execute(text("SET LOCAL synchronous_commit = off"))
            await _archive(connection, entries, ends)
        there += len(entries)
        yield entries


async def _archive(
    connection: AsyncConnection, entries: Sequence[LogEntry], ends: dict[int, int]
) -> None:
    folded = [Position(partition, 1, seq) for partition, seq in ends.items() if seq]
    rows = fold_entries(PROJECTIONS, entries, {}, {}).rows() | checkpoint_rows(folded)
    await write_rows(connection, rows)
    await copy_events(connection, entries)


def _build(
    store: EventStore, tenant: str, ends: dict[int, int], numbers: dict[str, int]
) -> list[LogEntry]:
    partition, job = store.partition(tenant), str(uuid7())
    numbers[tenant] += 1
    queued = JobQueued(
        tenant=tenant,
        user_id="u",
        project_id=PROJECT,
        goal="a todo list for two people, with a done button",
    )
    began = datetime.now(UTC)
    entries: list[LogEntry] = []
    for version, payload in enumerate([queued, *from_start_to_ready(numbers[tenant])], start=1):
        ends[partition] += 1
        event = RecordedEvent(
            id=str(uuid7()),
            type=payload.type,
            tenant=tenant,
            project=PROJECT,
            job=job,
            version=version,
            time=began + timedelta(milliseconds=version),
            cause="",
            trace="",
            data=payload.model_dump_json().encode(),
            payload=payload,
        )
        entries.append(LogEntry(Position(partition, 1, ends[partition]), event))
    return entries
