"""Connections to Redis and Postgres, and their drivers' errors in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,  # noqa: A004
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,  # noqa: A004
)
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventstore.errors import PostgresUnavailable, RedisUnavailable

COMMAND_TIMEOUT_S = 5.0
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


def connect_redis(url: str, *, max_connections: int = MAX_CONNECTIONS) -> Redis:
    """A client for `url` (`redis://`, `rediss://`, `unix://`); connects when first used.

    Takes at most `max_connections`; whoever finds them all busy waits for one. Commands are
    repeated a few times over a new connection when one breaks. That is safe for every script here:
    an append knows its own events again.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        protocol=2,
        max_connections=max_connections,
        timeout=COMMAND_TIMEOUT_S,
        socket_timeout=COMMAND_TIMEOUT_S,
        socket_connect_timeout=COMMAND_TIMEOUT_S,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.5), retries=3),
    )
    return Redis.from_pool(pool)


def connect_postgres(url: str, *, pool_size: int = 5) -> AsyncEngine:
    """An engine for `url`, the form every Postgres client takes (`postgresql://…`)."""
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        url = f"{_ASYNCPG}://{rest}"
    return create_async_engine(
        url,
        pool_size=pool_size,
        pool_pre_ping=True,
        pool_timeout=COMMAND_TIMEOUT_S,
        hide_parameters=True,  # goals and payloads have no business in an error's text
        connect_args={
            "timeout": COMMAND_TIMEOUT_S,
            "command_timeout": 60,
            # A role that is called like our schema would otherwise find its tables there first.
            "server_settings": {"search_path": "public", "application_name": "headrace"},
        },
    )


@contextmanager
def redis_errors() -> Iterator[None]:
    """Translates what a Redis that cannot serve raises."""
    try:
        yield
    except (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError) as e:
        raise RedisUnavailable(f"Redis does not answer: {e or type(e).__name__}") from e
    except ResponseError as e:
        if str(e).split(" ", 1)[0] in _REFUSALS:
            raise RedisUnavailable(f"Redis refuses: {e}") from e
        raise


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
