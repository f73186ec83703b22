"""`projects`: what each project has come to."""

from collections.abc import Iterator

from sqlalchemy import BigInteger, Column, DateTime, Integer, Numeric, Table, Text

from projector.projection import Merge, Projection, Row, Step
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


def _counted(column: str, step: Step) -> Iterator[Row]:
    yield _row(step) | {column: 1}


def _ready(step: Step) -> Iterator[Row]:
    yield _row(step) | {"ready": 1, "latest_build": step.after.build_number}


def _spent(step: Step) -> Iterator[Row]:
    told = step.event.payload
    assert isinstance(told, Metered)  # noqa: S101 - registered for it
    if told.input_tokens or told.output_tokens or told.cost_usd:
        yield _row(step) | {
            "input_tokens": told.input_tokens,
            "output_tokens": told.output_tokens,
            "cost_usd": usd(told.cost_usd),
        }


def _row(step: Step) -> Row:
    return {
        "tenant": step.after.tenant,
        "project_id": step.after.project,
        "created_at": step.event.time,
        "updated_at": step.event.time,
    }


PROJECTS = Projection(
    projects,
    of_event={
        JobQueued: lambda step: _counted("jobs", step),
        JobReady: _ready,
        JobFailed: lambda step: (*_counted("failed", step), *_spent(step)),
        JobCancelled: lambda step: (*_counted("cancelled", step), *_spent(step)),
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
