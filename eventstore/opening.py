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
    `open`         ends before or      LogUnverified: Redis has lost events, or has others
                   differs from the
                   archive
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
from eventstore.reading import hash_fields, stream_exact
from eventstore.scripts import Scripts
from eventstore.store import EventStore
from schemas import Position

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
        found = [
            await _unregistered(redis, Keys(number), partitions) for number in range(partitions)
        ]
        await archive.register(found)
        registered = await archive.registered()
    if len(registered) != partitions:
        raise ServerUnsuitable(
            f"this log has {len(registered)} partitions, not {partitions}: their number is fixed "
            "when a log is made"
        )
    scripts = Scripts(redis)
    for registration in registered:
        await _open_partition(redis, archive, scripts, registration, run_id, partitions)
        if registration.state == "creating":
            await archive.mark_open(registration.partition)
    lineages = {one.partition: one.lineage for one in registered}
    store = EventStore(redis, archive, lineages, partitions=partitions)
    await store.note_restart()
    return store


async def _unregistered(redis: Redis, keys: Keys, partitions: int) -> Registration:
    """What to register for a partition that Postgres does not know."""
    lineage, epoch, seq, made_with = await hash_fields(
        redis, keys.meta, "lineage", "epoch", "seq", "partitions"
    )
    if lineage is None or epoch is None:
        return Registration(keys.partition, str(uuid4()), FIRST_EPOCH, "creating")
    if made_with != str(partitions):
        raise ServerUnsuitable(
            f"the log in this Redis has {made_with} partitions, not {partitions}: their number is "
            "fixed when a log is made"
        )
    with redis_errors():
        length = await redis.xlen(keys.log)
    if seq != str(length):
        raise LogUnverified(
            keys.partition, f"Postgres is empty, and Redis has only {length} of {seq} events"
        )
    log.info("log_adopted", partition=keys.partition, events=length)
    return Registration(keys.partition, lineage, int(epoch), "open")


async def _open_partition(
    redis: Redis,
    archive: Archive,
    scripts: Scripts,
    registered: Registration,
    run_id: str,
    partitions: int,
) -> None:
    keys, lineage = Keys(registered.partition), registered.lineage
    (found,) = await hash_fields(redis, keys.meta, "lineage")
    if found is None and registered.state == "creating":
        answer = await scripts(
            "create",
            [keys.meta, keys.log, keys.work("high"), keys.work("normal")],
            [lineage, registered.epoch, run_id, FORMAT, partitions],
        )
        found = lineage if answer == b"created" else answer.decode()
    if found is None:
        raise LogMissing(keys.partition)
    if found != lineage:
        raise LogUnverified(keys.partition, f"found {found}, registered is {lineage}")
    await _compare_with_archive(redis, archive, keys)


async def _compare_with_archive(redis: Redis, archive: Archive, keys: Keys) -> None:
    """A log that ends before its archive has lost events, whose positions would be used again."""
    archived = await archive.last_event(keys.partition)
    if archived is None:
        return
    position, event_id = archived
    epoch, seq = await hash_fields(redis, keys.meta, "epoch", "seq")
    end = Position(keys.partition, int(epoch or 0), int(seq or 0))
    if end < position:
        raise LogUnverified(
            keys.partition,
            f"it ends at {end.entry_id}, its archive at {position.entry_id}: Redis has lost events",
        )
    (fields,) = await stream_exact(redis, keys.log, [position.entry_id])
    if fields is not None and fields[b"id"].decode() != event_id:
        raise LogUnverified(
            keys.partition, f"at {position.entry_id} stands another event than in the archive"
        )


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
