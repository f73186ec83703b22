"""The log: every event of every job, appended to Redis streams in order and whole."""

from eventstore.archive import Archive
from eventstore.connection import connect_postgres, connect_redis, postgres_errors, redis_errors
from eventstore.entries import LogEntry
from eventstore.errors import (
    CommandIdReused,
    EventStoreError,
    Fenced,
    LogDamaged,
    LogMissing,
    LogUnverified,
    NumberTaken,
    PayloadRefused,
    PostgresUnavailable,
    RedisUnavailable,
    ServerUnsuitable,
    TooManyWaiting,
    VersionConflict,
)
from eventstore.following import (
    START,
    JobEntry,
    JobEvent,
    Passed,
    ProgressLine,
    Reset,
    Subscribed,
    follow,
    subscribe,
)
from eventstore.handling import CommandHandler, Handled
from eventstore.housekeeping import Housekeeper
from eventstore.hub import Hub, Waker
from eventstore.opening import open_log
from eventstore.store import TENANT_CAP, Appended, CommandId, EventStore
from eventstore.work import Admission, Claim, Work

__all__ = [
    "START",
    "TENANT_CAP",
    "Admission",
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
    "Housekeeper",
    "Hub",
    "JobEntry",
    "JobEvent",
    "LogDamaged",
    "LogEntry",
    "LogMissing",
    "LogUnverified",
    "NumberTaken",
    "Passed",
    "PayloadRefused",
    "PostgresUnavailable",
    "ProgressLine",
    "RedisUnavailable",
    "Reset",
    "ServerUnsuitable",
    "Subscribed",
    "TooManyWaiting",
    "VersionConflict",
    "Waker",
    "Work",
    "connect_postgres",
    "connect_redis",
    "follow",
    "open_log",
    "postgres_errors",
    "redis_errors",
    "subscribe",
]
