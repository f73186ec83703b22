"""`projects`: what each project has come to."""

from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Integer, Numeric, Table, Text

from projector.projection import Change, Merge, Projection, Step
from projector.projections.money import usd
from projector.tables import metadata
from schemas.events import (
    JobCancelled,
    JobFailed,
    JobQueued,
    JobReady,
    Metered,
    PhaseCompleted,
    RetryScheduled,
)

projects = Table(
    "projects",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("latest_build", Integer),
    Column("jobs", Integer, nullable=False),
    Column("ready", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("cancelled", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_usd", Numeric(20, 9), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)


def _said(step: Step, **said: Any) -> list[Change]:
    said["created_at"] = said["updated_at"] = step.event.time
    return [((step.after.tenant, step.after.project), said)]


def _ready(step: Step) -> list[Change]:
    return _said(step, ready=1, latest_build=step.after.build_number)


def _spent(step: Step) -> list[Change]:
    told = step.event.payload
    assert isinstance(told, Metered)  # noqa: S101 - registered for it
    if not (told.input_tokens or told.output_tokens or told.cost_usd):
        return []
    return _said(
        step,
        input_tokens=told.input_tokens,
        output_tokens=told.output_tokens,
        cost_usd=usd(told.cost_usd),
    )


PROJECTS = Projection(
    projects,
    of_event={
        JobQueued: lambda step: _said(step, jobs=1),
        JobReady: _ready,
        JobFailed: lambda step: _said(step, failed=1) + _spent(step),
        JobCancelled: lambda step: _said(step, cancelled=1) + _spent(step),
        PhaseCompleted: _spent,
        RetryScheduled: _spent,
    },
    merge={
        "latest_build": Merge.MOST,
        "jobs": Merge.ADD,
        "ready": Merge.ADD,
        "failed": Merge.ADD,
        "cancelled": Merge.ADD,
        "input_tokens": Merge.ADD,
        "output_tokens": Merge.ADD,
        "cost_usd": Merge.ADD,
        "created_at": Merge.LEAST,
        "updated_at": Merge.MOST,
    },
)
