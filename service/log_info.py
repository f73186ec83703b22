"""What stands in the log: each partition as Redis and Postgres have it, looked at without opening.

Looking changes nothing: no epoch begins, and a log that cannot be opened is shown as it is.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from eventstore import Archive, redis_errors
from eventstore.keys import GROUP, Keys
from eventstore.reading import hash_fields, server_time_ms, stream_edge, stream_length, stream_range
from eventstore.register import Registration
from schemas import Position

RATE_S = 60.0
_SAMPLE = 500
_SCANNED = 500


@dataclass(frozen=True, slots=True)
class WorkInfo:
    """A work stream: jobs that may run, those that a worker claimed, and who claims."""

    entries: int = 0
    claimed: int = 0
    unclaimed: int = 0
    consumers: int = 0


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """One partition. `state`: open, creating, missing (from Redis) or another (lineage there).

    `lag_s` is the age of the oldest event that is not archived; `rate` counts events a second over
    the last minute.
    """

    partition: int
    state: str
    lineage: str
    epoch: int = 0
    events: int = 0
    in_redis: int = 0
    first: str | None = None
    archived: str | None = None
    lag: int = 0
    lag_s: float = 0.0
    rate: float = 0.0
    high: WorkInfo = WorkInfo()
    normal: WorkInfo = WorkInfo()
    waiting: int = 0
    living: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """All partitions together. Workers claim everywhere, so `consumers` is the most of any."""

    events: int
    in_redis: int
    lag: int
    lag_s: float
    rate: float
    high: WorkInfo
    normal: WorkInfo
    waiting: int
    living: int


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A consumer of the work streams: how many jobs it holds, and for how long it was silent."""

    name: str
    holds: int
    silent_s: float


@dataclass(frozen=True, slots=True)
class LogInfo:
    """The whole log; no partitions before it is made."""

    partitions: tuple[PartitionInfo, ...]
    workers: tuple[WorkerInfo, ...] = ()

    @property
    def totals(self) -> Totals:
        """The last row."""
        parts = self.partitions
        return Totals(
            events=sum(part.events for part in parts),
            in_redis=sum(part.in_redis for part in parts),
            lag=sum(part.lag for part in parts),
            lag_s=max((part.lag_s for part in parts), default=0.0),
            rate=sum(part.rate for part in parts),
            high=_together([part.high for part in parts]),
            normal=_together([part.normal for part in parts]),
            waiting=sum(part.waiting for part in parts),
            living=sum(part.living for part in parts),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"totals": asdict(self.totals)}


def _together(works: Sequence[WorkInfo]) -> WorkInfo:
    names = [field.name for field in fields(WorkInfo)]
    sums = {name: sum(getattr(work, name) for work in works) for name in names}
    return WorkInfo(**sums | {"consumers": max((work.consumers for work in works), default=0)})


async def look(redis: Redis, archive: Archive) -> LogInfo:
    """The log now. Raises `RedisUnavailable`, `PostgresUnavailable`."""
    registered = await archive.register.all()
    parts = tuple([await _partition(redis, archive, one) for one in registered])
    made = [part.partition for part in parts if part.state == "open"]
    return LogInfo(parts, await _workers(redis, made))


async def _partition(redis: Redis, archive: Archive, registered: Registration) -> PartitionInfo:
    keys = Keys(registered.partition)
    archived = await archive.end(keys.partition)
    lineage, epoch, seq = await hash_fields(redis, keys.meta, "lineage", "epoch", "seq")
    if lineage != registered.lineage or epoch is None or seq is None:
        missing = "creating" if registered.state == "creating" else "missing"
        return PartitionInfo(
            partition=keys.partition,
            state=missing if lineage is None else "another",
            lineage=registered.lineage,
            epoch=registered.newest.number,
            archived=str(archived) if archived else None,
        )
    now = datetime.fromtimestamp(await server_time_ms(redis) / 1000, UTC)
    first = await stream_edge(redis, keys.log)
    events = int(seq)
    lag = max(0, events - (archived.seq if archived else 0))
    with redis_errors():
        living = await redis.hlen(keys.runs)
    return PartitionInfo(
        partition=keys.partition,
        state=registered.state,
        lineage=lineage,
        epoch=int(epoch),
        events=events,
        in_redis=await stream_length(redis, keys.log),
        first=f"{keys.partition}:{first}" if first else None,
        archived=str(archived) if archived else None,
        lag=lag,
        lag_s=await _oldest_s(redis, keys, archived, now) if lag else 0.0,
        rate=await _rate(redis, keys, now),
        high=await _work(redis, keys.work("high")),
        normal=await _work(redis, keys.work("normal")),
        waiting=await _waiting(redis, keys),
        living=int(living),
    )


async def _oldest_s(redis: Redis, keys: Keys, after: Position | None, now: datetime) -> float:
    """The age of the first event behind `after`."""
    found = await stream_range(redis, keys.log, after=after.entry_id if after else None, count=1)
    return round(max(0.0, (now - _time(found[0][1])).total_seconds()), 1) if found else 0.0


async def _rate(redis: Redis, keys: Keys, now: datetime) -> float:
    """Events a second over the last minute, or since the 500th newest if that is younger."""
    with redis_errors():
        newest: Any = await redis.xrevrange(keys.log, count=_SAMPLE)
    ages = [(now - _time(fields)).total_seconds() for _, fields in newest]
    recent = [age for age in ages if age < RATE_S]
    span_s = max(recent) if len(recent) == _SAMPLE else RATE_S
    return round(len(recent) / max(span_s, 0.001), 2)


def _time(fields: dict[bytes, bytes]) -> datetime:
    return datetime.fromisoformat(fields[b"time"].decode())


async def _work(redis: Redis, work: str) -> WorkInfo:
    with redis_errors():
        entries = int(await redis.xlen(work))
        groups: Any = await redis.xinfo_groups(work)
    for group in groups:
        if group["name"].decode() == GROUP:
            claimed = int(group["pending"])
            return WorkInfo(entries, claimed, entries - claimed, int(group["consumers"]))
    return WorkInfo(entries, 0, entries, 0)


async def _workers(redis: Redis, partitions: Sequence[int]) -> tuple[WorkerInfo, ...]:
    """Every worker that a partition knows: all the jobs it holds, and when it was last heard of."""
    holds: dict[str, int] = {}
    silent_s: dict[str, float] = {}
    for keys in map(Keys, partitions):
        for work in (keys.work("high"), keys.work("normal")):
            with redis_errors():
                groups: Any = await redis.xinfo_groups(work)
                known: Any = await redis.xinfo_consumers(work, GROUP) if groups else []
            for consumer in known:
                name, idle_s = consumer["name"].decode(), round(consumer["idle"] / 1000, 1)
                holds[name] = holds.get(name, 0) + int(consumer["pending"])
                silent_s[name] = min(silent_s.get(name, idle_s), idle_s)
    return tuple(WorkerInfo(name, holds[name], silent_s[name]) for name in sorted(holds))


async def _waiting(redis: Redis, keys: Keys) -> int:
    """How many jobs wait behind the caps of the partition's tenants."""
    with redis_errors():
        scan: Any = redis.hscan_iter(keys.tenants, count=_SCANNED)
        tenants = [tenant.decode() async for tenant, _ in scan]
        pipeline = redis.pipeline(transaction=False)
        for tenant in tenants:
            pipeline.zcard(keys.waiting(tenant))
        return sum(await pipeline.execute()) if tenants else 0
