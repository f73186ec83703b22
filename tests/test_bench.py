"""The benchmarks run, and say what they promise to say. Their numbers are not judged here."""

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from redis.asyncio import Redis

from benchmarks import BENCHMARKS, Row, Target
from benchmarks.append import BATCHED, PIPELINED, SEQUENTIAL, Shape, append_round, raw_round
from benchmarks.builds import EVENTS_A_BUILD, TENANTS, fill, held, queue_jobs
from benchmarks.follow import Audience, bench_follow
from benchmarks.log import raw_batches, typed_batches
from benchmarks.memory import bench_memory, event_rows
from benchmarks.rows import Round, compared, silent
from benchmarks.steps import OWN_S, READY_S, rows_of
from eventstore import CommandHandler, EventStore, Hub
from eventstore.keys import Keys
from eventstore.reading import StreamEntry, stream_range
from schemas import JobRef, RecordedEvent, Status
from schemas.events import PhaseStarted
from service.embedded import Servers
from service.errors import SettingsInvalid
from tests.service.command_line import CommandLine, logging_of_its_own

SMALL: dict[str, dict[str, Any]] = {
    "append": {"events": 640},
    "build": {"events": 36},
    "follow": {"events": 30, "followers": 5},
    "jobs": {"events": 33},
    "log": {"events": 300},
    "memory": {"events": 300, "jobs": 20},
    "project": {"events": 600},
    "replay": {"events": 600},
    "steady": {"events": 600, "slices": 3},
}

METRICS = {
    "append": {
        *(
            f"append_{shape}{suffix}"
            for shape in ("sequential", "concurrent16", "single_pipelined", "batched")
            for suffix in ("", "_p50_ms", "_p99_ms")
        ),
        "append_growth_tenth",
        "append_growth",
    },
    "build": {
        *("ready_s", "own_s", "queue_ms", "scaffold_ms", "code_ms"),
        *("sandbox_ms", "files_ms", "install_ms", "tests_ms", "start_ms", "probe_ms", "rest_ms"),
    },
    "follow": {"follow_p50_ms", "follow_p99_ms", "follow_connections"},
    "jobs": {
        *(
            f"fsm_{what}"
            for what in ("jobs", "transitions", "jobs_one_project", "jobs_two_workers")
        ),
        "fsm_jobs_busy_cores",
        "queue_wait_p50_ms",
        "first_event_p99_ms",
        "takeover_leases",
        "cancel_p99_ms",
    },
    "log": {"log_read", "log_read_p50_ms", "log_read_p99_ms"},
    "project": {"live", "live_reading", "live_writing", "lag_p99_ms"},
    "replay": {
        *("rebuild", "rebuild_parallel", "rebuild_busy_cores", "rebuild_growth"),
        "swap_wait_ms",
    },
    "steady": {"steady_memory", "steady_keys", "steady_events"},
    "memory": {
        "memory_log_event",
        "memory_job_event",
        "memory_job_queued",
        "memory_job_waiting",
        "memory_job_running",
        "memory_follower",
    },
}


@pytest.mark.parametrize("name", BENCHMARKS)
async def test_each_benchmark_finds_what_it_names_beside_a_limit(
    name: str,
    redis: Redis,
    servers: Servers,
    database_url: str,
) -> None:
    target, said = Target(servers.redis_url, database_url), list[str]()
    bench = partial(BENCHMARKS[name], target, said.append, **SMALL[name])
    with logging_of_its_own():
        rows = await anyio.to_thread.run_sync(bench)
    assert {row.metric for row in rows} == METRICS[name]
    assert len(rows) == len(METRICS[name])
    assert all(row.value > 0 and row.beside_value > 0 and row.beside for row in rows)
    assert said


async def test_a_redis_that_holds_something_is_not_filled(
    redis: Redis, servers: Servers, database_url: str
) -> None:
    await redis.set("mine", "1")
    target = Target(servers.redis_url, database_url)
    with pytest.raises(SettingsInvalid, match="not empty"):
        await anyio.to_thread.run_sync(lambda: bench_follow(target, events=30))
    assert await redis.keys("*") == [b"mine"]


async def test_rows_are_printed_as_json_alone(
    redis: Redis, servers: Servers, database_url: str, tmp_path: Path
) -> None:
    command = ("bench", "log", "--events", "300")
    where = ("--redis", servers.redis_url, "--postgres", database_url)
    rows = await anyio.to_thread.run_sync(lambda: CommandLine(tmp_path).json(*command, *where))
    assert {row["metric"] for row in rows} == METRICS["log"]
    assert set(rows[0]) == {"metric", "value", "unit", "beside", "beside_value", "ratio"}


# --- rows ----------------------------------------------------------------------------------------


def test_a_ratio_is_ours_over_theirs() -> None:
    found = Row("m", 3.0, "events/s", "XADD", 4.0).to_dict()
    assert found["ratio"] == 0.75


def test_a_comparison_takes_the_median_of_the_rounds_of_each_side() -> None:
    ours = [Round(rate, [rate] * 10) for rate in (1.0, 50.0, 3.0)]
    theirs = [Round(rate, [rate] * 10) for rate in (9.0, 6.0, 7.0)]
    rate, p50_ms, p99_ms = compared("m", ours, "XADD", theirs)
    assert rate == Row("m", 3.0, "events/s", "XADD", 7.0)
    assert p50_ms == Row("m_p50_ms", 3.0, "ms", "XADD", 7.0)
    assert p99_ms == Row("m_p99_ms", 3.0, "ms", "XADD", 7.0)


# --- build ---------------------------------------------------------------------------------------


def test_what_is_ours_of_a_build_is_all_but_the_apps_own_work() -> None:
    took = {"queue": 0.1, "sandbox": 0.3, "install": 0.2, "tests": 0.5, "probe": 0.4, "rest": 0.25}
    slow = {"ready": 9.0, **took}
    ready, own, *steps = rows_of([slow, {"ready": 1.75, **took}, {"ready": 1.75, **took}])
    assert ready == Row("ready_s", 1.75, "s", "the limit", READY_S)
    assert own == Row("own_s", 0.65, "s", "the limit", OWN_S)
    assert Row("sandbox_ms", 300.0, "ms", "the whole", 1750.0) in steps
    assert len(steps) == len(took)


# --- append --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SEQUENTIAL, PIPELINED, BATCHED], ids=lambda s: s.metric)
async def test_both_sides_write_as_many_events_for_sixteen_tenants(
    store: EventStore, shape: Shape
) -> None:
    size = 16 * 16
    await raw_round(store, shape, size)
    raw = [f async for key in store.redis.scan_iter("raw:*") for _, f in await _entries(store, key)]
    assert len(raw) == size
    assert {fields[b"tenant"].decode() for fields in raw} == set(TENANTS)

    await append_round(store, shape, size)
    ours = [event for event in await _log(store) if isinstance(event.payload, PhaseStarted)]
    assert len(ours) == size
    assert {event.tenant for event in ours} == set(TENANTS)


async def test_a_round_counts_what_it_wrote_and_times_each_call(store: EventStore) -> None:
    found = await append_round(store, BATCHED, 16 * 8)
    assert len(found.latencies_ms) == 16
    # One after the other: their times add up to the round's, but for the caller's own.
    assert 16 * 8 / found.events_per_s >= sum(found.latencies_ms) / 1000


# --- what fills the log --------------------------------------------------------------------------


async def test_a_log_is_filled_with_whole_builds(
    store: EventStore, handler: CommandHandler
) -> None:
    await fill(store, 100, silent)
    await fill(store, 300, silent)
    assert 300 <= await held(store) < 300 + EVENTS_A_BUILD * len(TENANTS)
    events = await _log(store)
    assert {event.tenant for event in events} == set(TENANTS)
    for ref in {JobRef(event.tenant, event.job) for event in events}:
        job = await handler.load(ref)
        assert (job.status, job.version) == (Status.READY, EVENTS_A_BUILD)


# --- follow --------------------------------------------------------------------------------------


async def test_every_event_of_a_followed_job_is_timed_and_no_other(
    store: EventStore, hub: Hub
) -> None:
    audience = Audience(hub, await queue_jobs(store, 4))
    async with anyio.create_task_group() as tasks:
        await audience.gather(tasks, 1)
        assert len(await audience.hear(8)) == 2
        await audience.gather(tasks, 4)
        latencies_ms = await audience.hear(8)
        assert len(latencies_ms) == 8
        assert min(latencies_ms) > 0
        tasks.cancel_scope.cancel()


# --- log -----------------------------------------------------------------------------------------


async def test_both_sides_read_the_whole_log(store: EventStore) -> None:
    await fill(store, 6_000, silent)  # several batches in each partition
    for batches in (raw_batches, typed_batches):
        sizes = [s for number in range(store.partitions) async for s in batches(store, number)]
        assert sum(sizes) == await held(store)
        assert len(sizes) > store.partitions


# --- memory --------------------------------------------------------------------------------------


async def test_bytes_an_event_are_those_of_the_streams_over_their_entries(
    store: EventStore,
) -> None:
    await fill(store, 600, silent)
    log, job = await event_rows(store, 10_000)
    logs = [Keys(number).log.encode() for number in range(store.partitions)]
    jobs = [key async for key in store.redis.scan_iter("hr:*:job:*")]
    events = await held(store)
    for row, keys in ((log, logs), (job, jobs)):
        used = [await store.redis.memory_usage(key, samples=0) or 0 for key in keys]
        assert row.value == round(sum(used) / events, 1)
    entries = [fields for key in logs for _, fields in await _entries(store, key)]
    total = sum(len(value) for fields in entries for value in fields.values())
    assert log.beside_value == round(total / events, 1)


async def test_a_living_job_takes_more_than_its_events_claimed_or_not(
    redis: Redis, servers: Servers, database_url: str
) -> None:
    target = Target(servers.redis_url, database_url)
    rows = await anyio.to_thread.run_sync(lambda: bench_memory(target, events=300, jobs=400))
    used = {row.metric: row for row in rows}
    queued, running = used["memory_job_queued"], used["memory_job_running"]
    # What a claim adds is less than a server's own memory comes and goes by.
    assert queued.beside_value < min(queued.value, running.value)


async def _entries(store: EventStore, key: bytes) -> list[StreamEntry]:
    return await stream_range(store.redis, key.decode())


async def _log(store: EventStore) -> list[RecordedEvent]:
    return [
        entry.event
        for number in range(store.partitions)
        for entry in await store.read_log(number, None, count=100_000)
    ]
