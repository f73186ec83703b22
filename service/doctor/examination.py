"""All checks in their order; those that need what does not answer are named and left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Archive,
    EventStoreError,
    PostgresUnavailable,
    connect_postgres,
    connect_redis,
    postgres_errors,
    redis_errors,
)
from projector import checkpoints_of
from schemas import SchemaError
from service.doctor import postgres_server, redis_server, secrets
from service.doctor.finding import Finding, address, problem, unknown
from service.doctor.log import check_log, read_partitions
from service.doctor.postgres_server import PostgresServer, ask_postgres, examine_postgres
from service.doctor.read_model import judge_backlogs, read_backlogs
from service.doctor.redis_server import RedisServer, ask_redis, examine_redis
from service.doctor.timing import (
    judge_clocks,
    judge_latency,
    median_s,
    postgres_offset_s,
    redis_offset_s,
)
from service.doctor.work import judge_workload, read_workload
from service.embedded import Servers, are_embedded
from service.errors import ServiceError
from service.settings import Settings
from service.wiring import secret_keys

ANSWER_S = 5.0
CLOSE_S = 2.0
LOG_LINES = 5

_ERRORS = (EventStoreError, SchemaError, RedisError, SQLAlchemyError)
_BOTH = ("log", "read model")
_WHY = {
    "redis": "Without the log nothing is accepted, and no job gets on.",
    "postgres": "Nothing is folded and nothing can be listed; jobs that run go on, but wait before "
    "their app's first command.",
}


@dataclass(slots=True)
class Examination:
    """One look at the two servers; `findings` grow as they answer."""

    settings: Settings
    servers: Servers
    redis: Redis
    engine: AsyncEngine
    at_rest: bool
    findings: list[Finding] = field(default_factory=list)

    async def run(self) -> None:
        """Ask everything that can be asked."""
        redis = await self._examine_redis()
        postgres = await self._examine_postgres()
        if redis or postgres:
            with self._asking("clocks"):
                await self._examine_timing(redis, postgres)
        if postgres:
            with self._asking(secrets.CHECK):
                keys = secret_keys(self.settings, self.servers)
                self.findings.append(await secrets.check_secrets(self.engine, keys))
        else:
            self.findings.append(unknown(secrets.CHECK, "can be told only with Postgres"))
        if redis and postgres and (postgres.has_tables or postgres.revision is None):
            with self._asking("log"):
                await self._examine_log(redis, postgres)
        else:
            needed = "both servers" if not (redis and postgres) else "a database that is up to date"
            self.findings += [unknown(name, f"can be told only with {needed}") for name in _BOTH]
        if redis:
            with self._asking("work"):
                load = await read_workload(
                    self.redis, self.settings.partitions, lease_ms=self.settings.lease_ms
                )
                self.findings.append(
                    judge_workload(load, lease_s=self.settings.lease_s, at_rest=self.at_rest)
                )
        else:
            self.findings.append(unknown("work", "can be told only with Redis"))

    async def _examine_redis(self) -> RedisServer | None:
        home = self.settings.home if self._is_embedded else None
        with self._asking("redis"):
            server = await ask_redis(self.redis, self.servers.redis_url, home)
            self.findings += examine_redis(server)
            return server
        self.findings += _unknown(redis_server.CHECKS, "Redis")
        return None

    async def _examine_postgres(self) -> PostgresServer | None:
        with self._asking("postgres"):
            server = await ask_postgres(
                self.engine, self.servers.database_url, is_embedded=self._is_embedded
            )
            self.findings += examine_postgres(server)
            return server
        self.findings += _unknown(postgres_server.CHECKS, "Postgres")
        return None

    async def _examine_timing(
        self, redis: RedisServer | None, postgres: PostgresServer | None
    ) -> None:
        offsets_s, latency_s = {}, {}
        slow_commands: int | None = None
        if redis:
            offsets_s["Redis"] = await redis_offset_s(self.redis)
            latency_s["Redis"] = await median_s(self.redis.ping)
            try:
                slow_commands = int(await self.redis.slowlog_len())
            except ResponseError:  # a managed server may keep it for itself
                slow_commands = None
        if postgres:
            async with self.engine.connect() as connection:
                offsets_s["Postgres"] = await postgres_offset_s(connection)
                latency_s["Postgres"] = await median_s(lambda: connection.execute(text("SELECT 1")))
        self.findings += [
            judge_clocks(offsets_s),
            judge_latency(latency_s, slow_commands=slow_commands),
        ]

    async def _examine_log(self, redis: RedisServer, postgres: PostgresServer) -> None:
        archive = Archive(self.engine)
        registered = await archive.register.all() if postgres.has_tables else []
        wanted = self.settings.partitions
        parts = await read_partitions(self.redis, max(wanted, len(registered)))
        self.findings += await check_log(
            self.redis, archive, registered, parts, wanted=wanted, server=redis.identity
        )
        async with self.engine.connect() as connection:
            folded = await checkpoints_of(connection) if postgres.has_tables else {}
        if folded and all(part.lineage is None for part in parts):
            self.findings.append(unknown("read model", "can be told only with its log"))
            return
        backlogs = await read_backlogs(self.redis, parts, folded)
        self.findings.append(judge_backlogs(backlogs, now=datetime.now(UTC), at_rest=self.at_rest))

    @property
    def _is_embedded(self) -> bool:
        return are_embedded(self.servers, self.settings.home)

    @contextmanager
    def _asking(self, check: str) -> Iterator[None]:
        """What is not answered in time, or with an error, is a finding."""
        try:
            with anyio.fail_after(ANSWER_S), redis_errors(), postgres_errors():
                yield
        except TimeoutError:
            self.findings.append(self._unanswered(check, f"no answer within {ANSWER_S:g} s"))
        except _ERRORS as error:
            says = " ".join(str(error).split())
            is_postgres = isinstance(error, PostgresUnavailable)
            self.findings.append(self._unanswered(check, says, is_postgres=is_postgres))

    def _unanswered(self, check: str, says: str, *, is_postgres: bool = False) -> Finding:
        is_postgres = is_postgres or check == "postgres"
        url = self.servers.database_url if is_postgres else self.servers.redis_url
        variable = "DATABASE_URL" if is_postgres else "REDIS_URL"
        remedy = f"see that the server at {address(url)} runs and that {variable} is right"
        if self._is_embedded:
            folder = "postgres" if is_postgres else "valkey"
            log = self.settings.home / folder / "server.log"
            remedy = f"tail {log}, then start Headrace again"
        return problem(check, says, _WHY.get(check, "This cannot be examined."), remedy)


def _unknown(checks: tuple[str, ...], server: str) -> list[Finding]:
    """The checks of a server beside the first, which says why it does not answer."""
    return [unknown(check, f"can be told only with {server}") for check in checks[1:]]


async def examine(settings: Settings, servers: Servers, *, at_rest: bool) -> list[Finding]:
    """What is to be said of these servers. Writes nothing and raises nothing for what is wrong.

    `at_rest`: no Headrace runs on them, so that work that lies about is no fault.
    """
    redis = connect_redis(servers.redis_url, max_connections=1)
    engine = connect_postgres(servers.database_url, pool_size=1)
    examination = Examination(
        settings, servers, redis, engine.execution_options(postgresql_readonly=True), at_rest
    )
    try:
        await examination.run()
        return examination.findings
    finally:
        with anyio.move_on_after(CLOSE_S, shield=True):
            await redis.aclose()
            await engine.dispose()


def unreached(error: ServiceError) -> Finding:
    """The finding for servers that could not even be started."""
    says, *said = str(error).splitlines()
    why = "\n".join(["Nothing runs without them.", *said[-LOG_LINES:]])
    return problem("servers", says, why, "see `Servers` in docs/operations.md")
