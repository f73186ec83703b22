"""What a tenant has used today, what it may, and when its day begins anew."""

from datetime import date, datetime

from fastapi import APIRouter
from pydantic import BaseModel

from eventstore import day_of, midnight_after
from schemas.events import Limits, Tier
from service.api.parts import OwnParts, Tenant

router = APIRouter()


class Jobs(BaseModel):
    """Jobs that run now, how many may, and how many wait for that."""

    running: int
    at_once: int
    waiting: int


class Used(BaseModel):
    """What was used of something, and the limit; None: there is none."""

    used: float
    limit: float | None


class Day(BaseModel):
    """A tenant's day (UTC)."""

    day: date
    resets_at: datetime
    jobs: Used
    tokens: Used
    cost_usd: Used
    wall_s: Used


class Usage(BaseModel):
    """A tenant's use. `a_job`: what a single job may use, at most."""

    tier: Tier
    today: Day
    jobs: Jobs
    a_job: Limits


@router.get("/v1/usage")
async def usage(parts: OwnParts, owner: Tenant, tier: Tier | None = None) -> Usage:
    """Today's use and limits, as for a job of this tier; counted in the log, so never stale."""
    now, store = parts.handler.clock(), parts.handler.store
    standing = await parts.quotas.standing(owner, tier, now=now)
    admission = await store.work.admission(owner)
    spent, day = standing.spent, standing.day
    return Usage(
        tier=standing.tier,
        today=Day(
            day=day_of(now),
            resets_at=midnight_after(now),
            jobs=Used(used=spent.jobs, limit=day.jobs),
            tokens=Used(used=spent.tokens, limit=day.tokens),
            cost_usd=Used(used=spent.usd, limit=day.usd),
            wall_s=Used(used=spent.wall_s, limit=day.wall_s),
        ),
        jobs=Jobs(
            running=admission.running,
            at_once=admission.cap,
            waiting=await store.work.waiting(owner),
        ),
        a_job=standing.a_job,
    )
