"""The log: every event of every job, appended to Redis streams in order and whole."""

from eventstore.archive import Archive
from eventstore.connection import connect_postgres, connect_redis, postgres_errors, redis_errors
from eventstore.errors import (
    CommandIdReused,
    EventStoreError,
    Fenced,
    LogMissing,
    LogUnverified,
    NumberTaken,
    PostgresUnavailable,
    RedisUnavailable,
    ServerUnsuitable,
    VersionConflict,
)
from eventstore.handling import CommandHandler, Handled
from eventstore.hub import START, Hub, JobEntry, JobEvent, ProgressLine, Waker
from eventstore.opening import open_log
from eventstore.store import Appended, Claim, CommandId, EventStore, LogEntry

__all__ = [
    "START",
    "Appended",
    "Archive",
    "Claim",
    "CommandHandler",
    "CommandId",
    "CommandIdReused",
    "EventStore",
    "EventStoreError",
    "Fenced",
    "Handled",
    "Hub",
    "JobEntry",
    "JobEvent",
    "LogEntry",
    "LogMissing",
    "LogUnverified",
    "NumberTaken",
    "PostgresUnavailable",
    "ProgressLine",
    "RedisUnavailable",
    "ServerUnsuitable",
    "VersionConflict",
    "Waker",
    "connect_postgres",
    "connect_redis",
    "open_log",
    "postgres_errors",
    "redis_errors",
]
