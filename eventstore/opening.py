"""Opening the log: it is made exactly once, and nothing is appended to one that was not opened.

Postgres owns the truth about which log there is (`log_partitions`). Per partition:

    Postgres       Redis               what happens
    not there      empty               registered as `creating`, then made
    `creating`     empty               made, then marked `open`
    `creating`     the same lineage    an opener died in between: marked `open`
    `open`         the same lineage    opened
    `open`         empty               LogMissing
    not there      whole log           adopted: Postgres was restored or made anew
    not there      trimmed log         LogUnverified: its beginning exists nowhere
    any            another lineage     LogUnverified
"""

from collections.abc import Mapping
from uuid import uuid4

import structlog
from redis.asyncio import Redis

from eventstore.archive import Archive, Registration
from eventstore.connection import redis_errors
from eventstore.errors import LogMissing, LogUnverified, ServerUnsuitable
from eventstore.keys import FORMAT, Keys
from eventstore.reading import hash_fields
from eventstore.scripts import Scripts
from eventstore.store import EventStore

FIRST_EPOCH = 1

log = structlog.get_logger()


async def open_log(redis: Redis, archive: Archive, *, partitions: int) -> EventStore:
    """The event store on this Redis, every partition verified or made.

    Raises `LogMissing`, `LogUnverified`, `ServerUnsuitable`, `RedisUnavailable`,
    `PostgresUnavailable`.
    """
    run_id = await _check_server(redis)
    registered = await archive.registered()
    if not registered:
        found = [await _unregistered(redis, Keys(number)) for number in range(partitions)]
        await archive.register(found)
        registered = await archive.registered()
    if len(registered) != partitions:
        raise ServerUnsuitable(
            f"this log has {len(registered)} partitions, not {partitions}: their number is fixed "
            "when a log is made"
        )
    scripts = Scripts(redis)
    for registration in registered:
        await _open_partition(redis, scripts, registration, run_id)
        if registration.state == "creating":
            await archive.mark_open(registration.partition)
    lineages = {one.partition: one.lineage for one in registered}
    return EventStore(redis, archive, lineages, partitions=partitions)


async def _unregistered(redis: Redis, keys: Keys) -> Registration:
    """What to register for a partition that Postgres does not know."""
    lineage, epoch, seq = await hash_fields(redis, keys.meta, "lineage", "epoch", "seq")
    if lineage is None or epoch is None:
        return Registration(keys.partition, str(uuid4()), FIRST_EPOCH, "creating")
    with redis_errors():
        length = await redis.xlen(keys.log)
    if seq != str(length):
        raise LogUnverified(
            keys.partition, f"Postgres is empty, and Redis has only {length} of {seq} events"
        )
    log.info("log_adopted", partition=keys.partition, events=length)
    return Registration(keys.partition, lineage, int(epoch), "open")


async def _open_partition(
    redis: Redis, scripts: Scripts, registered: Registration, run_id: str
) -> None:
    keys, lineage = Keys(registered.partition), registered.lineage
    (found,) = await hash_fields(redis, keys.meta, "lineage")
    if found is None and registered.state == "creating":
        answer = await scripts(
            "create",
            [keys.meta, keys.log, keys.work("high"), keys.work("normal")],
            [lineage, registered.epoch, run_id, FORMAT],
        )
        found = lineage if answer == b"created" else answer.decode()
    if found is None:
        raise LogMissing(keys.partition)
    if found != lineage:
        raise LogUnverified(keys.partition, f"found {found}, registered is {lineage}")
    await _note_restart(redis, keys, run_id)


async def _note_restart(redis: Redis, keys: Keys, run_id: str) -> None:
    """A restarted server gives every worker one lease to report before its jobs are taken over."""
    (run,) = await hash_fields(redis, keys.meta, "run")
    if run == run_id:
        return
    with redis_errors():
        seconds, microseconds = await redis.time()
        opened = seconds * 1000 + microseconds // 1000
        await redis.hset(keys.meta, mapping={"run": run_id, "opened": opened})


async def _check_server(redis: Redis) -> str:
    """The server's run id. Refuses one that may drop events; warns of one that may lose some."""
    with redis_errors():
        info: Mapping[str, str] = await redis.info()
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ServerUnsuitable(
            f"this Redis may evict events (maxmemory-policy {policy}): "
            "set it with `CONFIG SET maxmemory-policy noeviction`"
        )
    if info.get("role") != "master":
        raise ServerUnsuitable("this Redis is a read-only replica: REDIS_URL must name its primary")
    if not int(info.get("aof_enabled", 0)):
        log.warning(
            "redis_not_durable",
            reason="AOF is off: acknowledged events are lost when Redis ends",
            remedy="CONFIG SET appendonly yes; CONFIG SET appendfsync always",
        )
    return str(info["run_id"])
