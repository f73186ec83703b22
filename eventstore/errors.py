"""Errors of the log.

EventStoreError
├── VersionConflict       somebody else appended to the job first
├── Fenced                the job belongs to another worker now
├── CommandIdReused       a command id stands for another request already
├── NumberTaken           the proposed build number is not the next one
├── TooManyWaiting        the tenant has as many jobs waiting as it may
├── QuotaSpent            the tenant has used what it may on this day
├── PayloadRefused        an event or a line of progress that cannot be kept
├── LogMissing            the log that Postgres knows is not in Redis
├── LogUnverified         this Redis holds another log, or one that was not opened
├── LogDamaged            a key of the log holds what it cannot hold
├── ServerUnsuitable      the server's settings would lose events
├── RedisUnavailable      the log's server does not answer
├── PostgresUnavailable   the archive's server does not answer
├── ExportInterrupted     the log was repaired while it was exported
├── ImportRefused         an export that is not whole, or a log that is not empty
└── RepairRefused         a repair that would do more harm than good
"""

import math
from datetime import datetime


class EventStoreError(Exception):
    """Base class of this package's errors. Nothing was written, unless a class says otherwise."""


class VersionConflict(EventStoreError):
    """The job has moved on. Read it again and decide again; `actual` is its version now."""

    def __init__(self, job: str, expected: int, actual: int) -> None:
        self.job = job
        self.expected = expected
        self.actual = actual
        super().__init__(f"job {job} is at version {actual}, not {expected}")


class Fenced(EventStoreError):
    """The job was taken over or has ended. Stop working on it; never retry."""

    def __init__(self, job: str, owner: str, attempt: int) -> None:
        self.job = job
        self.owner = owner
        self.attempt = attempt
        super().__init__(f"job {job} belongs to {owner} (attempt {attempt})")


class CommandIdReused(EventStoreError):
    """The same command id came with another request. Use a new id for a new request."""

    def __init__(self, command_id: str, job: str) -> None:
        self.command_id = command_id
        self.job = job
        super().__init__(f"command id {command_id!r} was used for another request (job {job})")


class NumberTaken(EventStoreError):
    """Another build of the project came first. Propose `last` + 1."""

    def __init__(self, project: str, last: int) -> None:
        self.project = project
        self.last = last
        super().__init__(f"the newest build of project {project} is number {last}")


class TooManyWaiting(EventStoreError):
    """The tenant has enough jobs waiting. Submit again when some of them have ended."""

    def __init__(self, tenant: str, limit: int) -> None:
        self.tenant = tenant
        self.limit = limit
        super().__init__(
            f"tenant {tenant} has {limit} jobs waiting already: submit again when some have ended, "
            "or cancel some"
        )


class QuotaSpent(EventStoreError):
    """The tenant has used what it may on this day. Submit again from `resets_at` on.

    `what` is `jobs`, `tokens`, `usd` or `wall_s`; `limit` and `used` are of that.
    """

    def __init__(
        self,
        tenant: str,
        what: str,
        *,
        limit: float,
        used: float,
        resets_at: datetime,
        now: datetime,
    ) -> None:
        self.tenant = tenant
        self.what = what
        self.limit = limit
        self.used = used
        self.resets_at = resets_at
        self.wait_s = max(1, math.ceil((resets_at - now).total_seconds()))
        unit = {"usd": "US dollars", "wall_s": "seconds of builds"}.get(what, what)
        super().__init__(
            f"tenant {tenant} has used {used:,.10g} of the {limit:,.10g} {unit} that it may use a "
            f"day: submit again from {resets_at:%Y-%m-%d %H:%M} UTC on"
        )


class PayloadRefused(EventStoreError):
    """What was to be written is too large, or holds a NUL or half a surrogate pair."""


class LogMissing(EventStoreError):
    """Redis is empty, but Postgres says that a log was made. A person must look.

    Was Redis started on the wrong folder, or has it lost its data? Nothing is written until its
    data are back.
    """

    def __init__(self, partition: int) -> None:
        self.partition = partition
        super().__init__(
            f"the log of partition {partition} is missing in Redis although Postgres knows it: "
            "check that REDIS_URL names the right server and that it has its data; if they are "
            "gone for good, `./headrace log repair` makes the log anew from its archive"
        )


class LogUnverified(EventStoreError):
    """The log in this Redis is not the one that Postgres knows, or not all of it.

    `remedy` says what a person can do; nothing is appended until it is done.
    """

    def __init__(self, partition: int, reason: str, remedy: str = "") -> None:
        self.partition = partition
        self.reason = reason
        remedy = remedy or "check that REDIS_URL and DATABASE_URL belong together"
        super().__init__(f"the log of partition {partition} cannot be used ({reason}): {remedy}")


class LogDamaged(EventStoreError):
    """Somebody else has written to a key of the log. A person must look; nothing was changed."""


class ServerUnsuitable(EventStoreError):
    """The server would lose events by its settings; the message names setting and remedy."""


class RedisUnavailable(EventStoreError):
    """Redis does not answer (connection, time-out, loading, read-only). Try again later.

    An append that ends so may have happened; repeating it with the same events is safe.
    """


class PostgresUnavailable(EventStoreError):
    """Postgres does not answer. Try again later."""


class ExportInterrupted(EventStoreError):
    """The log was repaired while it was exported. Export it again."""


class ImportRefused(EventStoreError):
    """The export is not whole, or the log not empty. The message says what to do."""


class RepairRefused(EventStoreError):
    """A repair would destroy what is worth more than what it mends. Nothing was changed."""
