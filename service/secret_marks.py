"""Which projects may have secrets, told by Redis: builds of all others do without Postgres.

A mark comes before the first secret and stays, for one too many costs no more than a question.
Every process that opens the log marks all that have some, so that a Redis that was lost forgets
none.
"""

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import postgres_errors, redis_errors
from eventstore.keys import Keys
from schemas import partition_of

_MARKED = text("SELECT DISTINCT tenant, project FROM headrace.project_secrets")


class SecretMarks:
    """The marks of all projects. Every method raises `RedisUnavailable`."""

    def __init__(self, redis: Redis, partitions: int) -> None:
        self._redis = redis
        self._partitions = partitions

    async def mark(self, tenant: str, project: str) -> None:
        """From now on the project may have secrets."""
        with redis_errors():
            await self._redis.sadd(self._key(tenant), f"{tenant}/{project}")

    async def may_have(self, tenant: str, project: str) -> bool:
        """Whether the project may have secrets."""
        with redis_errors():
            return bool(await self._redis.sismember(self._key(tenant), f"{tenant}/{project}"))

    async def mark_all(self, engine: AsyncEngine) -> None:
        """Mark all projects that have secrets. Raises `PostgresUnavailable` as well."""
        with postgres_errors():
            async with engine.connect() as connection:
                found = (await connection.execute(_MARKED)).all()
        for tenant, project in found:
            await self.mark(tenant, project)

    def _key(self, tenant: str) -> str:
        return Keys(partition_of(tenant, self._partitions)).secrets
