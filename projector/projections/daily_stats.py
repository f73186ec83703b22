"""`daily_stats`: what happened in a project on a day (UTC). An example to write others by.

Everything is a sum: a row that is there takes up whatever a new event adds to it.
"""

from collections.abc import Callable
from datetime import UTC
from decimal import Decimal

from sqlalchemy import BigInteger, Column, Date, Integer, Numeric, Table, Text

from projector.projection import Change, Merge, Projection, Step
from projector.projections.money import usd
from projector.tables import metadata
from schemas.events import (
    ChecksFailed,
    JobCancelled,
    JobFailed,
    JobQueued,
    JobReady,
    JobStarted,
    Metered,
    PhaseCompleted,
    RetryScheduled,
)

daily_stats = Table(
    "daily_stats",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("queued", Integer, nullable=False),
    # Jobs that a worker took for the first time, and how long they had waited by then.
    Column("started", Integer, nullable=False),
    Column("queue_wait_ms", BigInteger, nullable=False),
    Column("takeovers", Integer, nullable=False),
    Column("repairs", Integer, nullable=False),
    Column("ready", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("cancelled", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_usd", Numeric(20, 9), nullable=False),
    # Of jobs that ended, from their first start on.
    Column("wall_ms", BigInteger, nullable=False, server_default="0"),
)

_SUMS = tuple(column.name for column in daily_stats.columns if not column.primary_key)


def _added(step: Step, **sums: int | Decimal) -> list[Change]:
    day = step.event.time.astimezone(UTC).date()
    return [((step.after.tenant, step.after.project, day), sums)]


def _counted(column: str) -> Callable[[Step], list[Change]]:
    return lambda step: _added(step, **{column: 1})


def _started(step: Step) -> list[Change]:
    if step.before is None or step.before.started_at is not None:
        return _added(step, takeovers=1)
    waited = step.event.time - step.after.queued_at
    return _added(step, started=1, queue_wait_ms=round(waited.total_seconds() * 1000))


def _ended(column: str) -> Callable[[Step], list[Change]]:
    return lambda step: _added(step, **{column: 1, "wall_ms": step.after.wall_ms})


def _ended_and_spent(column: str) -> Callable[[Step], list[Change]]:
    ended = _ended(column)
    return lambda step: ended(step) + _spent(step)


def _spent(step: Step) -> list[Change]:
    told = step.event.payload
    assert isinstance(told, Metered)  # noqa: S101 - registered for it
    if not (told.input_tokens or told.output_tokens or told.cost_usd):
        return []
    return _added(
        step,
        input_tokens=told.input_tokens,
        output_tokens=told.output_tokens,
        cost_usd=usd(told.cost_usd),
    )


DAILY_STATS = Projection(
    daily_stats,
    of_event={
        JobQueued: _counted("queued"),
        JobStarted: _started,
        ChecksFailed: _counted("repairs"),
        JobReady: _ended("ready"),
        JobFailed: _ended_and_spent("failed"),
        JobCancelled: _ended_and_spent("cancelled"),
        PhaseCompleted: _spent,
        RetryScheduled: _spent,
    },
    merge=dict.fromkeys(_SUMS, Merge.ADD),
    version=2,
)
