"""Connections to Redis and Postgres, and their drivers' errors in our words."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import asyncpg
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,  # noqa: A004
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,  # noqa: A004
)
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from eventstore.errors import (
    EventStoreError,
    LogDamaged,
    PostgresUnavailable,
    RedisUnavailable,
)

COMMAND_TIMEOUT_S = 5.0
ASK_S = 5.0
STATEMENT_S = 60.0
_REFUSALS = frozenset(
    {"NOREPLICAS", "MISCONF", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOPERM", "NOGROUP", "BUSY"}
)
MAX_CONNECTIONS = 32
_ASYNCPG = "postgresql+asyncpg"
# What COPY raises, which goes to the driver directly.
_ASYNCPG_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
)


Verify = Callable[[str], Awaitable[None]]


class Pool(BlockingConnectionPool):
    """Connections that asked, each when it was made, which server process is behind them.

    `verify` is given its `server_id`, and raises when this is not a server to go on with. A restart
    or another server under the same address always means new connections, so no read pays for the
    question.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs | {"redis_connect_func": self._on_connect})
        self.verify: Verify | None = None

    def make_connection(self) -> AbstractConnection:
        """A connection that writes with hiredis, too: the driver's asyncio half only reads with it.

        An append has forty arguments; joined in Python they cost as much as all of its checks.
        """
        connection: AbstractConnection = super().make_connection()  # type: ignore[no-untyped-call]
        connection.pack_command = HiredisRespSerializer().pack  # type: ignore[method-assign, assignment]
        return connection

    def unverified(self) -> Redis:
        """A client of the same server with one connection that asks nothing."""
        pool = Pool(
            connection_class=self.connection_class,
            max_connections=1,
            timeout=self.timeout,
            **self.connection_kwargs,
        )
        return Redis.from_pool(pool)

    async def _on_connect(self, connection: AbstractConnection) -> None:
        try:
            await connection.on_connect()
            if self.verify is not None:
                await connection.send_command("INFO", "server", "replication")
                await self.verify(_server_id(await connection.read_response()))
        except BaseException:
            # The driver takes a connection whose question failed for one that is made.
            await connection.disconnect(nowait=True)
            raise


def _server_id(info: bytes) -> str:
    return server_id(dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line))


def server_id(info: Mapping[str, Any]) -> str:
    """What tells a server process, and each time that it is a primary, from any other.

    Half of each id: 80 bits will do, and `meta` stays small enough for the compact form of a hash.
    """
    return f"{info['run_id'][:20]}:{info['master_replid'][:20]}"


def connect_redis(
    url: str,
    *,
    max_connections: int = MAX_CONNECTIONS,
    command_timeout_s: float = COMMAND_TIMEOUT_S,
) -> Redis:
    """A client for `url` (`redis://`, `rediss://`, `unix://`); connects when first used.

    Takes at most `max_connections`; whoever finds them all busy waits for one. Commands are
    repeated a few times over a new connection when one breaks. An append knows its own events
    again; of the others a lost answer costs little: a claim waits for its lease, a line of progress
    may come twice.
    """
    pool = Pool.from_url(
        url,
        protocol=2,
        max_connections=max_connections,
        timeout=command_timeout_s,
        socket_timeout=command_timeout_s,
        socket_connect_timeout=command_timeout_s,
        retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.5), retries=3),
        # A primary that became a replica keeps its connections: a new one finds who is it now.
        retry_on_error=[ReadOnlyError],
    )
    return Redis.from_pool(pool)


def connect_postgres(
    url: str,
    *,
    pool_size: int = 5,
    command_timeout_s: float = STATEMENT_S,
    settings: Mapping[str, str] | None = None,
) -> AsyncEngine:
    """An engine for `url`, the form every Postgres client takes (`postgresql://…`).

    `settings` hold for its sessions, whatever the server's own are.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        url = f"{_ASYNCPG}://{rest}"
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        pool_timeout=COMMAND_TIMEOUT_S,
        # The one used last: to prepare all that a projector says takes a new one 70 ms.
        pool_use_lifo=True,
        hide_parameters=True,  # goals and payloads have no business in an error's text
        connect_args={
            "timeout": COMMAND_TIMEOUT_S,
            "command_timeout": command_timeout_s,
            # A role that is called like our schema would otherwise find its tables there first.
            "server_settings": {
                "search_path": "public",
                "application_name": "headrace",
                **(settings or {}),
            },
        },
    )
    event.listen(engine.sync_engine, "checkout", _check_open)
    return engine


def _check_open(connection: Any, *_: Any) -> None:
    """Have the pool connect anew where a server has hung up.

    Instead of its ping, which takes three trips before each use. What it would see beyond this, a
    server that is gone without a word, the first statement sees as well.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError("the server has closed the connection")


@contextmanager
def redis_errors() -> Iterator[None]:
    """Translates what a Redis that cannot serve raises."""
    try:
        yield
    except (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError) as e:
        raise RedisUnavailable(f"Redis does not answer: {e or type(e).__name__}") from e
    except ResponseError as e:
        if (e.status_code or str(e).split(" ", 1)[0]) in _REFUSALS:
            raise RedisUnavailable(f"Redis refuses: {e}") from e
        if "WRONGTYPE" in str(e):
            raise LogDamaged(f"a key of the log holds something else: {e}") from e
        raise EventStoreError(f"Redis refuses: {e}") from e


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Translates what a Postgres that cannot serve raises.

    asyncpg raises a bare OSError when nobody listens; SQLAlchemy wraps what a server says that is
    starting, stopping or full, which is known by there being no statement yet.
    """
    try:
        yield
    except asyncpg.DataError:
        raise  # an InterfaceError by descent, but it is our data that it refuses
    except (OSError, InterfaceError, OperationalError, PoolTimeout, *_ASYNCPG_AWAY) as e:
        raise PostgresUnavailable(f"Postgres does not answer: {e}") from e
    except DBAPIError as e:
        if e.connection_invalidated or e.statement is None:
            raise PostgresUnavailable(f"Postgres does not answer: {e.orig}") from e
        raise


@asynccontextmanager
async def asking(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection for a question that somebody waits for."""
    with postgres_errors(), anyio.fail_after(ASK_S):
        async with engine.connect() as connection:
            yield connection
