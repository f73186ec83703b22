"""The log: every event of every job, appended to Redis streams in order and whole."""

from eventstore.archive import Archive
from eventstore.connection import connect_postgres, connect_redis, postgres_errors, redis_errors
from eventstore.entries import LogEntry
from eventstore.errors import (
    CommandIdReused,
    EventStoreError,
    ExportInterrupted,
    Fenced,
    ImportRefused,
    LogDamaged,
    LogMissing,
    LogUnverified,
    NumberTaken,
    PayloadRefused,
    PostgresUnavailable,
    QuotaSpent,
    RedisUnavailable,
    RepairRefused,
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
    read_progress,
    subscribe,
)
from eventstore.handling import CommandHandler, Handled, patiently
from eventstore.housekeeping import Housekeeper
from eventstore.hub import Hub
from eventstore.opening import open_log
from eventstore.quotas import DayLimits, Spent, day_of, midnight_after
from eventstore.repair import Fault, Repair, Repaired
from eventstore.salvage import Found
from eventstore.store import TENANT_CAP, Appended, CommandId, EventStore
from eventstore.transfer import (
    check_export,
    event_line,
    export_log,
    import_log,
    written_whole,
)
from eventstore.waker import Waker, WorkWaker
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
    "DayLimits",
    "EventStore",
    "EventStoreError",
    "ExportInterrupted",
    "Fault",
    "Fenced",
    "Found",
    "Handled",
    "Housekeeper",
    "Hub",
    "ImportRefused",
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
    "QuotaSpent",
    "RedisUnavailable",
    "Repair",
    "RepairRefused",
    "Repaired",
    "Reset",
    "ServerUnsuitable",
    "Spent",
    "Subscribed",
    "TooManyWaiting",
    "VersionConflict",
    "Waker",
    "Work",
    "WorkWaker",
    "check_export",
    "connect_postgres",
    "connect_redis",
    "day_of",
    "event_line",
    "export_log",
    "follow",
    "import_log",
    "midnight_after",
    "open_log",
    "patiently",
    "postgres_errors",
    "read_progress",
    "redis_errors",
    "subscribe",
    "written_whole",
]
