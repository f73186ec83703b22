"""`phases`: the timeline of every job, a row for each time that it was in a phase."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
)

from projector.projection import Change, Merge, Projection, Row, Step
from projector.projections.jobs import jobs
from projector.tables import metadata
from schemas import Job, Phase
from schemas.events import (
    CancelRequested,
    ChecksFailed,
    JobFailed,
    JobStarted,
    Metered,
    PhaseCompleted,
    PhaseStarted,
    RetryScheduled,
)

phases = Table(
    "phases",
    metadata,
    Column("job_id", Text, ForeignKey(jobs.c.id), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("phase", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("finished_at", DateTime(timezone=True)),
    # As the worker measured it; `finished_at` - `started_at` has the appends in it too.
    Column("duration_ms", BigInteger),
    Column("outcome", Text, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_usd", Double, nullable=False),
    CheckConstraint(
        "outcome in ('running', 'completed', 'failed', 'interrupted', 'cancelled')",
        name="phases_outcome",
    ),
    CheckConstraint("phase in ('scaffold', 'code', 'deps', 'checks')", name="phases_phase"),
    Index("phases_tenant", "tenant", "started_at"),
)


def _entered(step: Step) -> list[Change]:
    entered = step.event.payload
    assert isinstance(entered, PhaseStarted)  # noqa: S101 - registered for it
    return _said(
        step.after, entered.phase, entered.round, started_at=step.event.time, outcome="running"
    )


def _completed(step: Step) -> list[Change]:
    done = step.event.payload
    assert isinstance(done, PhaseCompleted)  # noqa: S101 - registered for it
    return _said(
        step.after,
        done.phase,
        done.round,
        started_at=step.event.time,
        finished_at=step.event.time,
        duration_ms=done.duration_ms,
        outcome="completed",
        **_used(done),
    )


def _retried(step: Step) -> list[Change]:
    retry = step.event.payload
    assert isinstance(retry, RetryScheduled)  # noqa: S101 - registered for it
    return _said(
        step.after,
        retry.phase,
        retry.round,
        started_at=step.event.time,
        outcome="running",
        **_used(retry),
    )


def _used(told: Metered) -> Row:
    return {
        "input_tokens": told.input_tokens,
        "output_tokens": told.output_tokens,
        "cost_usd": told.cost_usd,
    }


def _left(outcome: str) -> Callable[[Step], list[Change]]:
    """The phase that the job was in, unless it had completed it, ends another way."""

    def left(step: Step) -> list[Change]:
        before, at, told = step.before, step.event.time, step.event.payload
        phase = before.current_phase if before else None
        if before is None or phase is None or phase in before.completed:
            return []
        return _said(
            before,
            phase,
            before.round,
            started_at=at,
            finished_at=at,
            outcome=outcome,
            **(_used(told) if isinstance(told, Metered) else {}),
        )

    return left


def _said(job: Job, phase: Phase, number: int, **said: Any) -> list[Change]:
    said["tenant"], said["project_id"] = job.tenant, job.project
    return [((job.job, job.attempt, number, str(phase)), said)]


PHASES = Projection(
    phases,
    of_event={
        PhaseStarted: _entered,
        PhaseCompleted: _completed,
        RetryScheduled: _retried,
        ChecksFailed: _left("failed"),
        JobFailed: _left("failed"),
        JobStarted: _left("interrupted"),
        CancelRequested: _left("cancelled"),
    },
    merge={
        "started_at": Merge.LEAST,
        "finished_at": Merge.KNOWN,
        "duration_ms": Merge.KNOWN,
        "input_tokens": Merge.ADD,
        "output_tokens": Merge.ADD,
        "cost_usd": Merge.ADD,
    },
    job="job_id",
)
