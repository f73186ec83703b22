"""Opening the log: where an event store comes from."""

from redis.asyncio import Redis

from eventstore.archive import Archive
from eventstore.store import TENANT_CAP, EventStore
from eventstore.verification import Verification


async def open_log(
    redis: Redis, archive: Archive, *, partitions: int, tenant_cap: int = TENANT_CAP
) -> EventStore:
    """The event store on this Redis, every partition verified or made (`verification.py`).

    `redis`: a client of `connect_redis`; each of its connections is verified before it is used.
    `tenant_cap`: how many jobs of a tenant run at a time, unless it has a cap of its own. Raises
    `LogMissing`, `LogUnverified`, `ServerUnsuitable`, `RedisUnavailable`, `PostgresUnavailable`.
    """
    verification = Verification(redis, archive, partitions)
    await verification.verify_again()
    await verification.guard(redis)
    return EventStore(redis, archive, verification, partitions=partitions, tenant_cap=tenant_cap)
