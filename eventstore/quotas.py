"""What a tenant uses on a day (UTC): counted as its events are appended, by the same script.

So a limit is exact however many ask at once, and needs no read model. The counters are of use for
their day only. Where they are gone (a log that was made anew) they begin with what the read model
has of the day.

What a job has used since its last event is noted beside them while it runs, so that jobs which run
at the same time know of each other.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

from redis.asyncio import Redis

from eventstore.connection import redis_errors
from eventstore.errors import QuotaSpent
from eventstore.keys import Keys
from eventstore.reading import hash_fields
from eventstore.verification import SealedScripts
from schemas import JobRef, partition_of
from schemas.commands import Usage
from schemas.events import AnyPayload, JobQueued, Metered

NANO = 1_000_000_000
# No event adds more: the counters are integers of 64 bits.
_MOST = 10**15


class Spent(NamedTuple):
    """What was used on a day. Money in billionths of a dollar, so that sums are exact.

    `wall_ms`: of jobs that ended on it, the time from their first start on.
    """

    jobs: int = 0
    tokens: int = 0
    nano_usd: int = 0
    wall_ms: int = 0

    @property
    def usd(self) -> float:
        """The money, in dollars."""
        return self.nano_usd / NANO

    @property
    def wall_s(self) -> float:
        """The time, in seconds."""
        return self.wall_ms / 1000


class Noted(NamedTuple):
    """What a tenant has used on a day, whether that is all of it, and what was set for it alone."""

    spent: Spent
    is_whole: bool
    own: str | None


@dataclass(frozen=True, slots=True)
class DayLimits:
    """How much a tenant may have used on a day when it queues a job; None: any."""

    jobs: int | None = None
    tokens: int | None = None
    usd: float | None = None
    wall_s: float | None = None

    def as_argument(self) -> str:
        """As `append.lua` takes it."""
        nano_usd = None if self.usd is None else min(round(self.usd * NANO), _MOST)
        wall_ms = None if self.wall_s is None else min(round(self.wall_s * 1000), _MOST)
        return " ".join(
            "-" if limit is None else str(limit)
            for limit in (self.jobs, self.tokens, nano_usd, wall_ms)
        )

    def spent(self, tenant: str, counter: str, used: int, *, now: datetime) -> QuotaSpent:
        """The error for a counter that has reached its limit."""
        what, unit = {"nano_usd": ("usd", NANO), "wall_ms": ("wall_s", 1000)}.get(
            counter, (counter, 1)
        )
        return QuotaSpent(
            tenant,
            what,
            limit=getattr(self, what) or 0,
            used=used if unit == 1 else used / unit,
            resets_at=midnight_after(now),
            now=now,
        )


def day_of(moment: datetime) -> date:
    """The day that something is counted for."""
    return moment.astimezone(UTC).date()


def midnight_after(moment: datetime) -> datetime:
    """When the next day begins."""
    return datetime.combine(day_of(moment) + timedelta(days=1), time(), UTC)


def counts_of(payloads: Iterable[AnyPayload], wall_ms: int) -> str:
    """What events add to their day, as `append.lua` takes it; '' for nothing."""
    jobs = tokens = nano_usd = 0
    for payload in payloads:
        if isinstance(payload, JobQueued):
            jobs += 1
        elif isinstance(payload, Metered):
            tokens += payload.input_tokens + payload.output_tokens
            nano_usd += round(min(payload.cost_usd * NANO, _MOST))
    if not (jobs or tokens or nano_usd or wall_ms):
        return ""
    return f"{jobs} {min(tokens, _MOST)} {min(nano_usd, _MOST)} {min(max(0, wall_ms), _MOST)}"


class Quotas:
    """The counters of all tenants, and what was set for some of them alone."""

    def __init__(self, redis: Redis, scripts: SealedScripts, keys: tuple[Keys, ...]) -> None:
        self._redis = redis
        self._scripts = scripts
        self._keys = keys

    async def spent(self, tenant: str, day: date) -> tuple[Spent, bool]:
        """What was counted for a day, and whether that is all: false before `count_from`."""
        key = self._keys_of(tenant).day(tenant, day)
        *counted, is_whole = await hash_fields(self._redis, key, *Spent._fields, "is_whole")
        return Spent(*(int(number or 0) for number in counted)), is_whole is not None

    async def count_from(self, tenant: str, day: date, known: Spent) -> Spent:
        """Let a day's counters be no lower than what is known otherwise; what they are then."""
        key = self._keys_of(tenant).day(tenant, day)
        return Spent(*await self._scripts.plain("count_from", [key], list(known)))

    async def note(self, ref: JobRef, attempt: int, day: date, untold: Usage) -> Noted:
        """What was used on a day so far, with what its running jobs have used and no event tells.

        Of this job that is `untold` from now on, until its next event tells of it, if `attempt` is
        the one that runs. All that a check of the day needs, in one trip.
        """
        tokens = min(untold.input_tokens + untold.output_tokens, _MOST)
        nano_usd = round(min(untold.cost_usd * NANO, _MOST))
        keys = self._keys_of(ref.tenant)
        *counted, is_whole, own = await self._scripts.plain(
            "untold",
            [keys.day(ref.tenant, day), keys.runs, keys.quotas],
            [ref.job, attempt, tokens, nano_usd, ref.tenant],
        )
        return Noted(Spent(*counted), bool(is_whole), own.decode() if own else None)

    async def own(self, tenant: str) -> str | None:
        """What was set for a tenant alone."""
        (found,) = await hash_fields(self._redis, self._keys_of(tenant).quotas, tenant)
        return found

    async def set_own(self, tenant: str, own: str | None) -> None:
        """Set that; None: nothing."""
        key = self._keys_of(tenant).quotas
        with redis_errors():
            if own is None:
                await self._redis.hdel(key, tenant)
            else:
                await self._redis.hset(key, tenant, own)

    def _keys_of(self, tenant: str) -> Keys:
        return self._keys[partition_of(tenant, len(self._keys))]
