"""What a job may use, what it has used, and what that leaves. Pure."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from generator.runner import Allowance
from schemas import Job
from schemas.commands import Usage

N = TypeVar("N", int, float)

DayLeft = Callable[[Job, Usage], Awaitable[Allowance]]
"""What its tenant's day leaves a job, which has used so much that no event tells. Below zero where
the tenant's jobs have used more than the day has."""


def added(one: Usage, other: Usage) -> Usage:
    """Both together."""
    return Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.cost_usd + other.cost_usd,
    )


def used_by(job: Job, untold: Usage) -> Usage:
    """All that a job has used: what its events say, and what none has told yet."""
    return added(Usage(job.input_tokens, job.output_tokens, job.cost_usd), untold)


def seconds_left(job: Job, now: datetime) -> float | None:
    """What `max_wall_s` leaves, counted from the job's first start; None: no limit."""
    if job.limits.max_wall_s is None:
        return None
    spent_s = (now - job.started_at).total_seconds() if job.started_at else 0.0
    return max(0.0, job.limits.max_wall_s - spent_s)


def allowance(job: Job, untold: Usage, now: datetime) -> Allowance:
    """What the next run may use."""
    used, limits = used_by(job, untold), job.limits
    tokens = used.input_tokens + used.output_tokens
    return Allowance(
        tokens=None if limits.max_tokens is None else max(0, limits.max_tokens - tokens),
        cost_usd=None
        if limits.max_cost_usd is None
        else max(0.0, limits.max_cost_usd - used.cost_usd),
        seconds=seconds_left(job, now),
    )


def least(one: Allowance, other: Allowance) -> Allowance:
    """What both allow."""
    return Allowance(
        tokens=_least(one.tokens, other.tokens),
        cost_usd=_least(one.cost_usd, other.cost_usd),
        seconds=_least(one.seconds, other.seconds),
    )


def _least(one: N | None, other: N | None) -> N | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def overspent(job: Job, untold: Usage) -> str | None:
    """Which limit has been passed, in words; None while all hold."""
    used, limits = used_by(job, untold), job.limits
    tokens = used.input_tokens + used.output_tokens
    if limits.max_tokens is not None and tokens > limits.max_tokens:
        return f"{tokens} tokens were used and {limits.max_tokens} are allowed"
    if limits.max_cost_usd is not None and used.cost_usd > limits.max_cost_usd:
        return f"{used.cost_usd:.4g} USD were spent and {limits.max_cost_usd:g} are allowed"
    return None


def exhausted(job: Job, untold: Usage) -> str | None:
    """Which limit leaves nothing for another run, in words; None while there is something left."""
    used, limits = used_by(job, untold), job.limits
    tokens = used.input_tokens + used.output_tokens
    if limits.max_tokens is not None and tokens >= limits.max_tokens:
        return f"all of its {limits.max_tokens} tokens are used"
    if limits.max_cost_usd is not None and used.cost_usd >= limits.max_cost_usd:
        return f"all of its {limits.max_cost_usd:g} USD are spent"
    return None


def day_is_over(left: Allowance) -> str | None:
    """What the day has nothing left of; None while there is something of all."""
    return _first_that(left, lambda amount: amount <= 0)


def day_is_passed(left: Allowance) -> str | None:
    """What was used more of than the day has; None while there is no such thing."""
    return _first_that(left, lambda amount: amount < 0)


def _first_that(left: Allowance, holds: Callable[[float], bool]) -> str | None:
    amounts = {"tokens": left.tokens, "money": left.cost_usd}
    return next((what for what, one in amounts.items() if one is not None and holds(one)), None)
