"""`phases`: the timeline of every job, a row for each time that it was in a phase."""

from collections.abc import Iterator

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

from projector.projection import Merge, Projection, Row, Step
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


def _entered(step: Step) -> Iterator[Row]:
    assert isinstance(step.event.payload, PhaseStarted)  # noqa: S101 - registered for it
    yield _row(step.after, step.event.payload.phase) | {
        "started_at": step.event.time,
        "outcome": "running",
    }


def _completed(step: Step) -> Iterator[Row]:
    done = step.event.payload
    assert isinstance(done, PhaseCompleted)  # noqa: S101 - registered for it
    yield _row(step.after, done.phase, done.round) | {
        "started_at": step.event.time,
        "finished_at": step.event.time,
        "duration_ms": done.duration_ms,
        "outcome": "completed",
        **_used(done),
    }


def _retried(step: Step) -> Iterator[Row]:
    retry = step.event.payload
    assert isinstance(retry, RetryScheduled)  # noqa: S101 - registered for it
    yield _row(step.after, retry.phase, retry.round) | {
        "started_at": step.event.time,
        "outcome": "running",
        **_used(retry),
    }


def _used(told: Metered) -> Row:
    return {
        "input_tokens": told.input_tokens,
        "output_tokens": told.output_tokens,
        "cost_usd": told.cost_usd,
    }


def _left(outcome: str, step: Step) -> Iterator[Row]:
    """The phase that the job was in, unless it had completed it, ends another way."""
    before = step.before
    if before is None or before.current_phase in (None, *before.completed):
        return
    assert before.current_phase is not None  # noqa: S101 - asked above
    yield _row(before, before.current_phase) | {
        "started_at": step.event.time,
        "finished_at": step.event.time,
        "outcome": outcome,
        **(_used(step.event.payload) if isinstance(step.event.payload, Metered) else {}),
    }


def _row(job: Job, phase: Phase, number: int | None = None) -> Row:
    return {
        "job_id": job.job,
        "attempt": job.attempt,
        "round": number or job.round,
        "phase": phase.value,
        "tenant": job.tenant,
        "project_id": job.project,
    }


PHASES = Projection(
    phases,
    of_event={
        PhaseStarted: _entered,
        PhaseCompleted: _completed,
        RetryScheduled: _retried,
        ChecksFailed: lambda step: _left("failed", step),
        JobFailed: lambda step: _left("failed", step),
        JobStarted: lambda step: _left("interrupted", step),
        CancelRequested: lambda step: _left("cancelled", step),
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
