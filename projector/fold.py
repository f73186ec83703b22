"""From a job's state to its row: the whole difference between the log and the read model."""

from typing import Any

from projector.errors import HistoryBroken
from schemas import Job, Position, RecordedEvent, evolve

COLUMNS_OF_STATE = (
    "tenant",
    "user_id",
    "goal",
    "tier",
    "attempt",
    "round",
    "version",
    "base_build",
    "build_number",
    "manifest",
    "failure_kind",
    "error_message",
    "debug_id",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "queued_at",
    "started_at",
    "finished_at",
    "updated_at",
    "sandbox_id",
    "preview_url",
    "build_version",
    "workspace_path",
)
"""Columns of `jobs` that carry the attribute of the same name."""


def row(job: Job, position: Position) -> dict[str, Any]:
    """The job's row in `jobs`, as of the event at `position`."""
    columns: dict[str, Any] = {name: getattr(job, name) for name in COLUMNS_OF_STATE}
    return columns | {
        "id": job.job,
        "project_id": job.project,
        "status": job.status.value,
        "failed_phase": job.failed_phase.value if job.failed_phase else None,
        "position": str(position),
    }


def advance(job: Job | None, event: RecordedEvent) -> Job:
    """`evolve`, for a history that must be whole.

    Raises `HistoryBroken` when the event is not the next of its job, or the first is no JobQueued.
    """
    expected = job.version + 1 if job else 1
    if event.version != expected:
        raise HistoryBroken(event.job, expected, event.version)
    evolved = evolve(job, event)
    if evolved is None:
        raise HistoryBroken(event.job, expected, event.version)
    return evolved
