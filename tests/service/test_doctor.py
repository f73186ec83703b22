"""What the doctor says of servers and logs as they should be, and of those that are not."""

import io
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore, connect_postgres
from eventstore.keys import GROUP, Keys
from generator.sandboxes.local import Holding
from projector import Projector
from service.commands.doctor import show
from service.doctor import Finding, Level, examination, examine
from service.doctor.finding import problem
from service.doctor.postgres_server import PostgresServer, examine_postgres
from service.doctor.read_model import Backlog, judge_backlogs
from service.doctor.redis_server import RedisServer, examine_redis, judge_disk
from service.doctor.surroundings import check_sandbox, check_settings, judge_sandbox
from service.doctor.timing import judge_clocks, judge_latency
from service.doctor.work import Workload, judge_workload, read_workload
from service.embedded import DATABASE, Servers, exclusive
from service.migrating import newest_revision, upgrade
from service.settings import RunnerKind, Settings
from tests.histories import NOON, PROJECT, build, queued
from tests.logs import PARTITIONS
from tests.projector.writing import ONE_PER_PARTITION, write
from tests.service.command_line import in_this_process_on

pytestmark = pytest.mark.anyio

OK, WARNING, PROBLEM, UNKNOWN = Level.OK, Level.WARNING, Level.PROBLEM, Level.UNKNOWN
GB = 1_000_000_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, partitions=PARTITIONS)


@pytest.fixture
def ours(servers: Servers, database_url: str) -> Servers:
    """The servers with the test's own database."""
    return Servers(servers.redis_url, database_url)


@pytest.fixture
async def bare_url(servers: Servers) -> str:
    """A database in which nothing was ever made."""
    admin = connect_postgres(servers.database_url.replace(f"/{DATABASE}?", "/postgres?"))
    async with admin.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("DROP DATABASE IF EXISTS bare WITH (FORCE)"))
        await connection.execute(text("CREATE DATABASE bare"))
    await admin.dispose()
    return servers.database_url.replace(f"/{DATABASE}?", "/bare?")


@pytest.fixture
async def folded(store: EventStore, engine: AsyncEngine) -> EventStore:
    """A log with a build in every partition, all of it in the archive and the read model."""
    for tenant in ONE_PER_PARTITION:
        await write(store, build(), tenant=tenant)
    await Projector(store, engine).catch_up()
    return store


async def said(
    settings: Settings, servers: Servers, check: str, *, at_rest: bool = False
) -> Finding:
    """The only finding of that check."""
    findings = await examine(settings, servers, at_rest=at_rest)
    (found,) = [finding for finding in findings if finding.check == check]
    return found


def levels(findings: list[Finding]) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings}


def but_latency(findings: list[Finding]) -> list[Finding]:
    """All but that one: a machine that has much to do answers late, and doctor rightly says so."""
    return [finding for finding in findings if finding.check != "latency"]


@asynccontextmanager
async def configured(redis: Redis, **values: str) -> AsyncIterator[None]:
    """The server with other settings while the block runs."""
    names = {name.replace("_", "-"): value for name, value in values.items()}
    before: list[Any] = [await redis.config_get(name) for name in names]
    for name, value in names.items():
        await redis.config_set(name, value)
    try:
        yield
    finally:
        for found in before:
            for name, value in found.items():
                await redis.config_set(name, value)


# --- servers as they should be --------------------------------------------------------------------


async def test_servers_as_they_should_be_are_nothing_to_talk_about(
    settings: Settings, ours: Servers, folded: EventStore
) -> None:
    findings = await examine(settings, ours, at_rest=False)
    assert {f.check: f for f in but_latency(findings) if f.level is not OK} == {}
    assert {"redis", "postgres", "log", "read model", "work"} <= levels(findings).keys()


@pytest.mark.usefixtures("redis")
async def test_a_log_that_was_never_made_is_nothing_wrong(
    settings: Settings, servers: Servers, bare_url: str
) -> None:
    findings = await examine(settings, Servers(servers.redis_url, bare_url), at_rest=True)
    assert set(levels(but_latency(findings)).values()) == {OK}


async def test_examining_makes_no_log_and_no_tables(
    settings: Settings, servers: Servers, bare_url: str, redis: Redis
) -> None:
    await examine(settings, Servers(servers.redis_url, bare_url), at_rest=True)
    assert await redis.dbsize() == 0
    engine = connect_postgres(bare_url)
    async with engine.connect() as connection:
        tables = await connection.execute(
            text("SELECT count(*) FROM pg_tables WHERE schemaname !~ '^(pg_|information_schema)'")
        )
        assert tables.scalar_one() == 0
    await engine.dispose()


async def test_examining_changes_nothing_in_a_log_that_is_there(
    settings: Settings, ours: Servers, folded: EventStore, redis: Redis
) -> None:
    async def changes() -> Any:
        return (await redis.info("persistence"))["rdb_changes_since_last_save"]

    before = await changes()
    await examine(settings, ours, at_rest=False)
    assert await changes() == before


async def test_postgres_itself_refuses_the_doctor_every_write(
    settings: Settings, ours: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write_something(engine: AsyncEngine, *_: Any, **__: Any) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("CREATE TABLE left_behind ()"))

    monkeypatch.setattr(examination, "ask_postgres", write_something)
    found = await said(settings, ours, "postgres")
    assert found.level is PROBLEM
    assert "read-only transaction" in found.says


# --- servers that do not answer -------------------------------------------------------------------


async def test_without_redis_everything_else_is_still_examined(
    settings: Settings, ours: Servers, tmp_path: Path
) -> None:
    away = Servers(f"unix://{tmp_path}/none.sock", ours.database_url)
    found = levels(await examine(settings, away, at_rest=False))
    assert [check for check, level in found.items() if level is PROBLEM] == ["redis"]
    assert (found["postgres"], found["database"]) == (OK, OK)
    assert found["latency"] in (OK, WARNING)
    assert {found[check] for check in ("memory", "log", "read model", "work")} == {UNKNOWN}


async def test_without_postgres_everything_else_is_still_examined(
    settings: Settings, ours: Servers, folded: EventStore, tmp_path: Path
) -> None:
    away = Servers(ours.redis_url, f"postgresql://x@/x?host={tmp_path}")
    found = levels(await examine(settings, away, at_rest=False))
    assert [check for check, level in found.items() if level is PROBLEM] == ["postgres"]
    assert (found["durability"], found["work"]) == (OK, OK)
    assert found["latency"] in (OK, WARNING)
    assert {found[check] for check in ("database", "log", "read model")} == {UNKNOWN}


async def test_a_database_that_does_not_exist_is_named(settings: Settings, ours: Servers) -> None:
    away = Servers(ours.redis_url, ours.database_url.replace("/test?", "/nowhere?"))
    found = await said(settings, away, "postgres")
    assert found.level is PROBLEM
    assert '"nowhere" does not exist' in found.says


async def test_a_server_that_takes_questions_and_never_answers_is_not_waited_for(
    settings: Settings, ours: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "ANSWER_S", 0.5)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        away = Servers(f"unix://{tmp_path}/silent.sock", ours.database_url)
        found = await said(settings, away, "redis")
    assert (found.level, found.says) == (PROBLEM, "no answer within 0.5 s")


async def test_no_password_is_told(settings: Settings) -> None:
    away = Servers("redis://:hunter2@127.0.0.1:1/0", "postgresql://u:hunter2@127.0.0.1:1/x")
    findings = await examine(settings, away, at_rest=False)
    assert levels(findings)["redis"] is levels(findings)["postgres"] is PROBLEM
    assert "hunter2" not in str(findings)


# --- Redis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "check", "level", "says"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "eviction", PROBLEM, "allkeys-lru"),
        ({"appendonly": "no"}, "durability", PROBLEM, "AOF is off"),
        ({"appendfsync": "everysec"}, "durability", WARNING, "everysec"),
        ({"maxmemory": "1500000"}, "memory", PROBLEM, "1.5 MB (maxmemory)"),
    ],
)
async def test_a_setting_that_would_lose_events_is_named_with_the_command_that_mends_it(
    settings: Settings,
    ours: Servers,
    redis: Redis,
    values: dict[str, str],
    check: str,
    level: Level,
    says: str,
) -> None:
    async with configured(redis, **values):
        found = await said(settings, ours, check)
    assert (found.level, says in found.says) == (level, True)
    if check != "memory":
        (name,) = values
        assert f"config set {name.replace('_', '-')} " in found.remedy


async def test_where_config_is_forbidden_the_rest_is_judged_by_info(
    settings: Settings, ours: Servers, redis: Redis
) -> None:
    await redis.acl_setuser(
        "managed",
        enabled=True,
        passwords=["+pw"],
        keys=["*"],
        categories=["+@all"],
        commands=["-config", "-slowlog"],
    )
    path = ours.redis_url.removeprefix("unix://")
    managed = Servers(f"unix://managed@{path}?password=pw", ours.database_url)
    try:
        findings = await examine(settings, managed, at_rest=False)
    finally:
        await redis.acl_deluser("managed")
    found = levels(findings)
    assert (found["durability"], found["disk"]) == (WARNING, UNKNOWN)
    assert (found["eviction"], found["memory"], found["log"]) == (OK, OK, OK)
    assert found["latency"] in (OK, WARNING)


def server(config: dict[str, str] | None = None, **info: Any) -> RedisServer:
    """A server as it should be, but for what is given."""
    usual = {
        "redis_version": "7.4.1",
        "role": "master",
        "maxmemory_policy": "noeviction",
        "aof_enabled": 1,
        "used_memory": 1 * GB,
        "total_system_memory": 16 * GB,
    }
    config = {"appendfsync": "always"} | (config or {})
    return RedisServer("redis://redis.example:6379", None, usual | info, config)


@pytest.mark.parametrize(
    ("asked", "check", "level"),
    [
        (server(), "redis", OK),
        (server(redis_version="6.2.14"), "redis", PROBLEM),
        (server(redis_version="7.2.4", valkey_version="7.2.4"), "redis", OK),
        (server(redis_version="7.2.4", valkey_version="7.1.0"), "redis", PROBLEM),
        (server(role="slave", master_host="10.0.0.7"), "role", PROBLEM),
        (server(aof_last_write_status="err"), "durability", PROBLEM),
        (server(aof_last_bgrewrite_status="err"), "durability", WARNING),
        (server(), "replicas", OK),
        (server({"min-replicas-to-write": "0"}, connected_slaves=2), "replicas", WARNING),
        (
            server({"min-replicas-to-write": "1"}, connected_slaves=2, min_slaves_good_slaves=2),
            "replicas",
            OK,
        ),
        (
            server({"min-replicas-to-write": "1"}, connected_slaves=0, min_slaves_good_slaves=0),
            "replicas",
            PROBLEM,
        ),
        (server(used_memory=13 * GB), "memory", WARNING),
        (server(used_memory=15 * GB), "memory", PROBLEM),
        (server(maxmemory=2 * GB, used_memory=1.6 * GB), "memory", WARNING),
        (server(mem_fragmentation_ratio=3.0), "memory", WARNING),
        (server(mem_fragmentation_ratio=3.0, used_memory=2_000_000), "memory", OK),
        (server(total_system_memory=0), "memory", OK),
        (server({"dir": "/"}), "disk", UNKNOWN),
    ],
)
def test_what_a_redis_says_of_itself_is_judged(
    asked: RedisServer, check: str, level: Level
) -> None:
    assert levels(examine_redis(asked))[check] is level


@pytest.mark.parametrize(
    ("free", "aof", "base", "level"),
    [
        (100 * GB, 1 * GB, 1 * GB, OK),
        # It may double before it is rewritten, and the rewrite takes as much again.
        (3 * GB, 1 * GB, 1 * GB, WARNING),
        (1.4 * GB, 1 * GB, 1 * GB, PROBLEM),
        (0.4 * GB, 0, 0, PROBLEM),
    ],
)
def test_a_disk_too_small_for_the_next_rewrite_is_foreseen(
    free: int, aof: int, base: int, level: Level
) -> None:
    assert judge_disk(free, aof_bytes=aof, base_bytes=base).level is level


# --- Postgres -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("major", "is_replica", "revision", "expected"),
    [
        (18, False, newest_revision(), (OK, OK)),
        (14, False, newest_revision(), (PROBLEM, OK)),
        (18, True, newest_revision(), (PROBLEM, OK)),
        (18, False, "0001", (OK, WARNING)),
        (18, False, "9999", (OK, PROBLEM)),
        (18, False, None, (OK, OK)),
    ],
)
def test_what_a_postgres_says_of_itself_is_judged(
    major: int, is_replica: bool, revision: str | None, expected: tuple[Level, Level]
) -> None:
    asked = PostgresServer("postgresql://pg.example/x", False, "1.0", major, is_replica, revision)
    assert tuple(finding.level for finding in examine_postgres(asked)) == expected


@pytest.mark.usefixtures("redis")
async def test_an_older_database_is_to_be_migrated_before_its_log_can_be_told(
    settings: Settings, servers: Servers, bare_url: str
) -> None:
    engine = connect_postgres(bare_url)
    await upgrade(engine, "0001")
    await engine.dispose()
    findings = await examine(settings, Servers(servers.redis_url, bare_url), at_rest=False)
    found = {finding.check: finding for finding in findings}
    assert (found["database"].level, found["database"].remedy) == (WARNING, "./headrace migrate")
    assert found["log"].level is found["read model"].level is UNKNOWN


# --- clocks and latency ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redis_s", "postgres_s", "level"),
    [(0.4, -0.4, OK), (0.8, -0.8, WARNING), (0.0, -59.0, WARNING), (61.0, 61.0, PROBLEM)],
)
def test_clocks_that_disagree_are_told_however_they_do(
    redis_s: float, postgres_s: float, level: Level
) -> None:
    assert judge_clocks({"Redis": redis_s, "Postgres": postgres_s}).level is level


def test_the_clock_that_is_ahead_is_named() -> None:
    assert judge_clocks({"Redis": -120.0}).says == "this machine is 2 min ahead of Redis"


def test_one_slow_server_is_enough_for_a_warning() -> None:
    assert judge_latency({"Redis": 0.004, "Postgres": 0.004}, slow_commands=None).level is OK
    slow = judge_latency({"Redis": 0.0001, "Postgres": 0.012}, slow_commands=3)
    assert (slow.level, slow.says) == (WARNING, "Redis 0.1 ms, Postgres 12 ms; 3 in SLOWLOG")


# --- the log --------------------------------------------------------------------------------------


async def test_an_empty_redis_beside_a_registered_log_is_a_log_that_is_missing(
    settings: Settings, ours: Servers, folded: EventStore, redis: Redis
) -> None:
    await redis.flushall()
    found = await said(settings, ours, "log")
    assert (await said(settings, ours, "read model")).level is UNKNOWN
    assert found.level is PROBLEM
    assert found.says == "Postgres knows a log that this Redis does not have " + (
        "(partitions 0 to 3)"
    )


async def test_another_log_than_the_registered_one_is_told(
    settings: Settings, ours: Servers, folded: EventStore, redis: Redis
) -> None:
    await redis.hset(Keys(1).meta, "lineage", "another")
    found = await said(settings, ours, "log")
    assert found.level is PROBLEM
    assert "not the one that Postgres knows (partition 1)" in found.says


async def test_a_log_that_ends_before_its_archive_is_told(
    settings: Settings, ours: Servers, folded: EventStore, redis: Redis
) -> None:
    end = await folded.log_end(2)
    await redis.xdel(Keys(2).log, end.entry_id)
    await redis.hset(Keys(2).meta, "seq", str(end.seq - 1))
    found = await said(settings, ours, "log")
    assert (found.level, "ends before its archive" in found.says) == (PROBLEM, True)


async def test_a_log_without_its_newest_event_is_told(
    settings: Settings, ours: Servers, folded: EventStore, redis: Redis
) -> None:
    await redis.xdel(Keys(2).log, (await folded.log_end(2)).entry_id)
    found = await said(settings, ours, "log")
    assert (found.level, "not the one that `meta` counts" in found.says) == (PROBLEM, True)


async def test_a_log_with_another_event_where_its_archive_ends_is_told(
    settings: Settings, ours: Servers, folded: EventStore, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE headrace.events SET id = gen_random_uuid() WHERE partition = 0")
        )
    found = await said(settings, ours, "log")
    assert (found.level, "another event (partition 0)" in found.says) == (PROBLEM, True)


async def test_a_log_that_begins_behind_its_archive_has_a_gap(
    settings: Settings, ours: Servers, folded: EventStore, engine: AsyncEngine, redis: Redis
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM headrace.events WHERE partition = 0"))
    await redis.xtrim(Keys(0).log, maxlen=1, approximate=False)
    found = await said(settings, ours, "log")
    assert (found.level, "begins behind" in found.says) == (PROBLEM, True)


async def test_a_log_that_was_archived_and_cut_is_whole(
    settings: Settings, ours: Servers, folded: EventStore, redis: Redis
) -> None:
    for number in range(PARTITIONS):
        await redis.xtrim(Keys(number).log, maxlen=0, approximate=False)
    assert (await said(settings, ours, "log")).level is OK


async def test_a_log_of_another_format_is_told(
    settings: Settings, ours: Servers, folded: EventStore, redis: Redis
) -> None:
    await redis.hset(Keys(0).meta, "format", "0")
    found = await said(settings, ours, "log")
    assert (found.level, "format" in found.says) == (PROBLEM, True)


async def test_an_epoch_that_only_one_side_knows_is_a_warning(
    settings: Settings, ours: Servers, folded: EventStore, redis: Redis
) -> None:
    await redis.hset(Keys(3).meta, "epoch", "7")
    found = await said(settings, ours, "log")
    assert (found.level, "epochs (partition 3)" in found.says) == (WARNING, True)


async def test_another_number_of_partitions_is_told_with_the_right_one(
    settings: Settings, ours: Servers, folded: EventStore
) -> None:
    other = settings.model_copy(update={"partitions": 8})
    found = await said(other, ours, "log")
    assert (found.level, found.remedy) == (PROBLEM, f"export HEADRACE_PARTITIONS={PARTITIONS}")


async def test_a_whole_log_beside_an_empty_database_is_taken_over_at_the_next_start(
    settings: Settings, ours: Servers, folded: EventStore, bare_url: str
) -> None:
    found = await said(settings, Servers(ours.redis_url, bare_url), "log")
    assert (found.level, "a whole one" in found.says) == (WARNING, True)


async def test_a_log_that_lost_its_beginning_beside_an_empty_database_is_a_problem(
    settings: Settings, ours: Servers, folded: EventStore, bare_url: str, redis: Redis
) -> None:
    await redis.xtrim(Keys(0).log, maxlen=1, approximate=False)
    findings = await examine(settings, Servers(ours.redis_url, bare_url), at_rest=False)
    told = [(f.level, f.says.split(" (")[1]) for f in findings if f.check == "log"]
    assert sorted(told) == [(PROBLEM, "partition 0)"), (WARNING, "partitions 1 to 3)")]


# --- work and read model --------------------------------------------------------------------------


async def test_a_job_whose_worker_fell_silent_is_counted_as_left_behind(
    store: EventStore, redis: Redis
) -> None:
    await write(store, [queued()], tenant=ONE_PER_PARTITION[1])
    at = Keys(1)
    await redis.xreadgroup("generators", "gone", {at.work("normal"): ">"})
    long, none = 1_000_000, 0
    assert await read_workload(redis, PARTITIONS, lease_ms=long) == Workload(1, 1, 0, 0, 0, 1, 0)
    assert await read_workload(redis, PARTITIONS, lease_ms=none) == Workload(1, 1, 0, 0, 1, 0, 1)


async def test_jobs_that_are_queued_and_jobs_behind_a_cap_are_counted(
    store: EventStore, redis: Redis
) -> None:
    await redis.hset(Keys(1).caps, ONE_PER_PARTITION[1], "1")
    for _ in range(3):
        await write(store, [queued()], tenant=ONE_PER_PARTITION[1])
    assert await read_workload(redis, PARTITIONS, lease_ms=1000) == Workload(3, 0, 1, 2, 0, 0, 0)


@pytest.mark.parametrize("at_rest", [False, True])
async def test_a_consumer_group_that_was_destroyed_is_a_problem_that_a_start_mends(
    settings: Settings, ours: Servers, folded: EventStore, redis: Redis, at_rest: bool
) -> None:
    await write(folded, [queued()], tenant=ONE_PER_PARTITION[1])
    await redis.xgroup_destroy(Keys(1).work("high"), GROUP)
    await redis.delete(Keys(3).work("normal"))
    found = await said(settings, ours, "work", at_rest=at_rest)
    assert (found.level, "destroyed (partitions 1, 3)" in found.says) == (PROBLEM, True)
    assert found.remedy.startswith("./headrace up")
    await folded.verification.verify_again()
    assert "destroyed" not in (await said(settings, ours, "work", at_rest=at_rest)).says


@pytest.mark.parametrize("at_rest", [False, True])
async def test_a_job_that_lives_and_stands_in_no_queue_is_told(
    settings: Settings, ours: Servers, store: EventStore, redis: Redis, at_rest: bool
) -> None:
    tenant, at = ONE_PER_PARTITION[1], Keys(1)
    await redis.hset(at.caps, tenant, "1")
    waiting = [await write(store, [queued()], tenant=tenant) for _ in range(2)][1]
    assert "once" not in (await said(settings, ours, "work", at_rest=at_rest)).says
    await redis.zrem(at.waiting(tenant), f"{waiting.job} {PROJECT} normal")
    found = await said(settings, ours, "work", at_rest=at_rest)
    assert (found.level, "(partition 1)" in found.says) == (WARNING, True)


@pytest.mark.parametrize(
    ("load", "level"),
    [
        (Workload(0, 0, 0, 0, 0, 0, 0), OK),
        (Workload(3, 1, 1, 1, 0, 1, 9), OK),
        (Workload(1, 0, 1, 0, 0, 0, 0), PROBLEM),
        (Workload(2, 2, 0, 0, 1, 1, 1), WARNING),
    ],
)
def test_work_that_lies_about_is_told(load: Workload, level: Level) -> None:
    assert judge_workload(load, lease_s=15, at_rest=False).level is level
    assert judge_workload(load, lease_s=15, at_rest=True).level is OK


async def test_events_that_nobody_folds_are_a_problem_unless_nothing_runs(
    settings: Settings, ours: Servers, store: EventStore
) -> None:
    await write(store, build(), tenant=ONE_PER_PARTITION[0])  # in March 2026, as its events say
    found = await said(settings, ours, "read model")
    assert (found.level, "(partition 0)" in found.says) == (PROBLEM, True)
    assert (await said(settings, ours, "read model", at_rest=True)).level is OK


@pytest.mark.parametrize(
    ("age", "level"), [(59, OK), (61, WARNING), (599, WARNING), (601, PROBLEM)]
)
def test_a_read_model_is_judged_by_its_oldest_event(age: int, level: Level) -> None:
    backlogs = [Backlog(0, 1, NOON), Backlog(1, 1, NOON - timedelta(seconds=age))]
    assert judge_backlogs(backlogs, now=NOON, at_rest=False).level is level


async def test_a_log_cut_before_it_was_folded_is_a_problem_even_at_rest(
    settings: Settings, ours: Servers, store: EventStore, redis: Redis
) -> None:
    await write(store, build(), tenant=ONE_PER_PARTITION[0])
    await redis.xtrim(Keys(0).log, maxlen=1, approximate=False)
    found = await said(settings, ours, "read model", at_rest=True)
    assert (found.level, "does not reach back" in found.says) == (PROBLEM, True)


# --- settings and sandboxes -----------------------------------------------------------------------


async def test_a_machine_that_can_isolate_is_told_by_a_sandbox_that_leaves_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    found = await check_sandbox(settings)
    assert found.level in (OK, WARNING)  # as an ordinary user without cgroups
    assert "system calls filtered" in found.says
    assert "no network" in found.says
    assert list((tmp_path / "sandboxes").iterdir()) == []


def test_a_sandbox_that_less_contains_says_what() -> None:
    whole = Holding(filtered=True, counted=("memory", "pids"), install_hosts=())
    assert judge_sandbox(whole, 0.1).level is OK
    open_hosts = judge_sandbox(replace(whole, install_hosts=("files.test",)), 0.1)
    assert (open_hosts.level, "installs from files.test" in open_hosts.says) == (OK, True)
    uncounted = judge_sandbox(replace(whole, counted=()), 0.1)
    assert (uncounted.level, "nothing counted" in uncounted.says) == (WARNING, True)
    unfiltered = judge_sandbox(replace(whole, filtered=False), 0.1)
    assert (unfiltered.level, "not filtered" in unfiltered.says) == (PROBLEM, True)


async def test_a_machine_that_makes_no_sandbox_says_why(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "sandboxes").write_text("in the way")
    found = await check_sandbox(settings)
    assert (found.level, "sandboxes" in found.says + found.remedy) == (PROBLEM, True)


async def test_an_e2b_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("E2B_API_KEY", "e2b_0")
    monkeypatch.setenv("E2B_API_URL", nobody)
    found = await check_sandbox(Settings.read())
    assert (found.level, "E2B" in found.says) == (PROBLEM, True)


async def test_the_simulated_loop_needs_no_sandbox(settings: Settings, tmp_path: Path) -> None:
    simulated = settings.model_copy(update={"runner": RunnerKind.NONE})
    assert (await check_sandbox(simulated)).level is OK
    assert not (tmp_path / "sandboxes").exists()


def test_apps_that_are_broken_on_purpose_are_not_forgotten(settings: Settings) -> None:
    assert check_settings(settings).level is OK
    found = check_settings(settings.model_copy(update={"broken_app": "hang"}))
    assert (found.level, found.remedy) == (WARNING, "unset HEADRACE_BROKEN_APP")


# --- the command ----------------------------------------------------------------------------------


def test_the_exit_code_is_one_only_when_something_is_wrong(tmp_path: Path) -> None:
    with in_this_process_on(tmp_path / "home", HEADRACE_RUNNER="none") as headrace:
        fresh = headrace.json("doctor")
        assert fresh["status"] == "ok"
        # How soon servers answer is this machine's affair.
        weak = {finding["check"] for finding in fresh["findings"] if finding["level"] != "ok"}
        assert weak <= {"latency"}
        warned = headrace.run("doctor", HEADRACE_BROKEN_APP="hang")
        assert (warned.returncode, "unset HEADRACE_BROKEN_APP" in warned.stdout) == (0, True)
        with exclusive(headrace.home):
            held = headrace.run("doctor")
        assert (held.returncode, held.stderr) == (1, "")
        assert "runs on" in held.stdout
        (headrace.home / "postgres" / "cluster" / "PG_VERSION").write_text("7")
        unstarted = headrace.run("doctor")
        assert (unstarted.returncode, unstarted.stderr) == (1, "")
        assert "incompatible" in unstarted.stdout


def test_a_setting_that_cannot_be_used_is_a_finding(tmp_path: Path) -> None:
    with in_this_process_on(tmp_path / "home") as headrace:
        done = headrace.run("doctor", HEADRACE_PORT="70000")
    assert (done.returncode, done.stderr) == (1, "")
    assert "unset HEADRACE_PORT" in done.stdout


@pytest.mark.parametrize("width", [80, 120])
def test_only_what_is_pasted_into_a_shell_is_wider_than_the_terminal(width: int) -> None:
    remedy = "redis-cli -s " + "/a/long/way" * 10 + " config set appendonly yes"
    written = io.StringIO()
    long = problem("durability", "what is said " * 10, "why it matters " * 10, remedy)
    show(Console(file=written, width=width), [long, Finding("log", UNKNOWN, "word " * 30)])
    wide = [line for line in written.getvalue().splitlines() if len(line) > width]
    assert wide == [f"→  {remedy}"]
