"""`phases`: the timeline of every job, a row for each time that it was in a phase."""

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

from projector.projection import Change, Merge, OfEvent, Projection, Row
from projector.projections.jobs import jobs
from projector.tables import metadata
from schemas import Job, Phase, RecordedEvent
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


def _entered(_: Job | None, event: RecordedEvent, job: Job) -> Change:
    entered = event.payload
    assert isinstance(entered, PhaseStarted)  # noqa: S101 - registered for it
    return _said(job, entered.phase, entered.round, event, "running")


def _completed(_: Job | None, event: RecordedEvent, job: Job) -> Change:
    done = event.payload
    assert isinstance(done, PhaseCompleted)  # noqa: S101 - registered for it
    change = _said(job, done.phase, done.round, event, "completed", used=done)
    change[1]["finished_at"] = event.time
    change[1]["duration_ms"] = done.duration_ms
    return change


def _retried(_: Job | None, event: RecordedEvent, job: Job) -> Change:
    retry = event.payload
    assert isinstance(retry, RetryScheduled)  # noqa: S101 - registered for it
    return _said(job, retry.phase, retry.round, event, "running", used=retry)


def _left(outcome: str) -> OfEvent:
    """The phase that the job was in, unless it had completed it, ends another way."""

    def left(job: Job | None, event: RecordedEvent, _: Job) -> Change | None:
        phase = job.current_phase if job else None
        if job is None or phase is None or phase in job.completed:
            return None
        used = event.payload if isinstance(event.payload, Metered) else None
        change = _said(job, phase, job.round, event, outcome, used=used)
        change[1]["finished_at"] = event.time
        return change

    return left


def _said(
    job: Job,
    phase: Phase,
    number: int,
    event: RecordedEvent,
    outcome: str,
    *,
    used: Metered | None = None,
) -> Change:
    said: Row = {
        "tenant": job.tenant,
        "project_id": job.project,
        "started_at": event.time,
        "outcome": outcome,
    }
    if used is not None:
        said["input_tokens"] = used.input_tokens
        said["output_tokens"] = used.output_tokens
        said["cost_usd"] = used.cost_usd
    return (job.job, job.attempt, number, str(phase)), said


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
