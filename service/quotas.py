"""Whether a tenant may have another job now, and what that job may use.

A day's use is counted in the log as events are appended (`eventstore/quotas.py`); the append that
queues a job refuses it when the day is used up. So what is looked at here beforehand decides
nothing but how much a job may use at most: no more than its tier allows, nor than is left today.
"""

import math
import time
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from typing import Annotated, Any, NamedTuple

import anyio
import structlog
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    DayLimits,
    EventStore,
    PostgresUnavailable,
    Spent,
    day_of,
    postgres_errors,
)
from generator import Allowance
from projector import used_on
from schemas import Job, JobRef
from schemas.commands import RequestBuild, Usage
from schemas.events import Limits, Tier
from service.refusals import NotAllowed, Unusable
from service.tiers import Money, TierRules, Tiers

ASK_S = 1.0
PAUSE_S = 10.0

log = structlog.get_logger()


class Wanted(BaseModel):
    """What a request wants its job to be held to: no more than the tier allows."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_cost_usd: Annotated[float, Field(gt=0)] | None = None
    max_wall_s: Annotated[int, Field(ge=1)] | None = None
    max_repairs: Annotated[int, Field(ge=0)] | None = None


NOTHING_WANTED = Wanted()


class OwnQuota(BaseModel):
    """What an operator has set for one tenant. None: as its tier has it."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    tier: Tier | None = None
    jobs_a_day: Annotated[int, Field(ge=0)] | None = None
    tokens_a_day: Annotated[int, Field(ge=0)] | None = None
    usd_a_day: Money | None = None
    wall_s_a_day: Annotated[int, Field(ge=0)] | None = None


class Allowed(NamedTuple):
    """A request as it may be queued, unless the day has used as much as this."""

    command: RequestBuild
    day_limits: DayLimits


@dataclass(frozen=True, slots=True)
class Standing:
    """What a tenant may, and has used today."""

    tier: Tier
    rules: TierRules
    day: DayLimits
    spent: Spent

    @property
    def a_job(self) -> Limits:
        """What a job may use that asks for no less: no more than the day has left."""
        return self.limits(NOTHING_WANTED)

    def limits(self, wanted: Wanted) -> Limits:
        """What a job may use. Raises `Unusable` where more is wanted than the tier allows."""
        allowed = {
            name: _lower(name, getattr(wanted, name), getattr(self.rules, name), self.tier)
            for name in Wanted.model_fields
        }
        # Where nothing is left the append refuses the job: the limits then are of no account.
        if self.day.tokens is not None and self.day.tokens > self.spent.tokens:
            left = self.day.tokens - self.spent.tokens
            allowed["max_tokens"] = _least(allowed["max_tokens"], left)
        if self.day.usd is not None and self.day.usd > self.spent.usd:
            left_usd = self.day.usd - self.spent.usd
            allowed["max_cost_usd"] = _least(allowed["max_cost_usd"], left_usd)
        if self.day.wall_s is not None and self.day.wall_s > self.spent.wall_s:
            left_s = math.ceil(self.day.wall_s - self.spent.wall_s)
            allowed["max_wall_s"] = _least(allowed["max_wall_s"], left_s)
        return Limits.model_validate(allowed)


class Quotas:
    """The quotas of all tenants."""

    def __init__(self, store: EventStore, engine: AsyncEngine, tiers: Tiers) -> None:
        self._store = store
        self._engine = engine
        self._tiers = tiers
        self._ask_again_at = float("-inf")

    async def allow(
        self, command: RequestBuild, *, tier: Tier | None, wanted: Wanted, now: datetime
    ) -> Allowed:
        """The command with its tier and limits. Raises `NotAllowed`, `Unusable`."""
        standing = await self.standing(command.tenant, tier, now=now)
        limits = standing.limits(wanted)
        return Allowed(replace(command, tier=standing.tier, limits=limits), standing.day)

    async def standing(self, tenant: str, tier: Tier | None, *, now: datetime) -> Standing:
        """What a tenant may and has used, asking as this tier. Raises `NotAllowed`."""
        own = await self.own(tenant)
        if tier == "pro" and own.tier == "free":
            raise NotAllowed(f"tenant {tenant} is on tier free: submit without a tier, or as free")
        tier = tier or own.tier or "free"
        rules = self._tiers.rules(tier)
        return Standing(tier, rules, day_limits(rules, own), await self._spent(tenant, day_of(now)))

    async def left_for(self, job: Job, untold: Usage) -> Allowance:
        """What the day leaves a job that runs, beside all that its tenant's jobs have used.

        `untold`: what the job has used and no event tells. Below zero where the day has had more
        than it has.
        """
        today, ref = day_of(datetime.now(UTC)), JobRef(job.tenant, job.job)
        note = partial(self._store.quotas.note, ref, job.attempt, today, untold)
        noted = await note()
        if not noted.is_whole:  # once a day
            await self._spent(job.tenant, today)
            noted = await note()
        own, spent = _read(noted.own), noted.spent
        # The tenant may have been put on another tier meanwhile.
        tier: Tier = "pro" if job.tier == "pro" and own.tier != "free" else "free"
        day = day_limits(self._tiers.rules(tier), own)
        return Allowance(
            tokens=None if day.tokens is None else day.tokens - spent.tokens,
            cost_usd=None if day.usd is None else round(day.usd - spent.usd, 9),
        )

    async def own(self, tenant: str) -> OwnQuota:
        """What was set for this tenant alone."""
        return _read(await self._store.quotas.own(tenant))

    async def set_own(self, tenant: str, own: OwnQuota) -> None:
        """Set that, and the cap of the tier that the tenant is put on."""
        before = await self.own(tenant)
        is_nothing = own == OwnQuota()
        text = own.model_dump_json(exclude_none=True)
        await self._store.quotas.set_own(tenant, None if is_nothing else text)
        if own.tier != before.tier:
            cap = self._tiers.rules(own.tier).jobs_at_once if own.tier else None
            await self._store.work.set_cap(tenant, cap)

    async def _spent(self, tenant: str, day: date) -> Spent:
        """What was used that day. Counters that may have been lost are compared once a day.

        Postgres away, or its table incomplete: what is counted holds, and it is not asked again at
        once.
        """
        spent, is_whole = await self._store.quotas.spent(tenant, day)
        if is_whole or time.monotonic() < self._ask_again_at:
            return spent
        known, why = None, "daily_stats waits for its backfill"
        try:
            with anyio.fail_after(ASK_S), postgres_errors():
                async with self._engine.connect() as connection:
                    known = await used_on(connection, tenant, day)
        except (PostgresUnavailable, TimeoutError) as error:
            why = str(error)
        if known is None:
            self._ask_again_at = time.monotonic() + PAUSE_S
            log.warning("quota_not_compared", tenant=tenant, error=why)
            return spent
        return await self._store.quotas.count_from(tenant, day, Spent(*known))


def day_limits(rules: TierRules, own: OwnQuota) -> DayLimits:
    """What a tenant may use on a day: as its tier has it, where nothing was set for it alone."""
    return DayLimits(
        jobs=rules.jobs_a_day if own.jobs_a_day is None else own.jobs_a_day,
        tokens=rules.tokens_a_day if own.tokens_a_day is None else own.tokens_a_day,
        usd=rules.usd_a_day if own.usd_a_day is None else own.usd_a_day,
        wall_s=rules.wall_s_a_day if own.wall_s_a_day is None else own.wall_s_a_day,
    )


def _read(own: str | None) -> OwnQuota:
    return OwnQuota() if own is None else OwnQuota.model_validate_json(own)


def _lower(name: str, wanted: Any, allowed: Any, tier: Tier) -> Any:
    if wanted is None:
        return allowed
    if allowed is not None and wanted > allowed:
        raise Unusable(f"limits.{name}", f"{wanted} is more than the {allowed} of tier {tier}")
    return wanted


def _least(one: Any, other: Any) -> Any:
    return other if one is None else min(one, other)
