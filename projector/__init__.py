"""The tail water: folds the log into Postgres, and answers questions about it."""

from projector.errors import HistoryBroken, ProjectorError
from projector.projector import Projector
from projector.queries import JobRow, job_by_id, list_jobs, row_of
from projector.replay import Difference, Replayed, rebuild, verify

__all__ = [
    "Difference",
    "HistoryBroken",
    "JobRow",
    "Projector",
    "ProjectorError",
    "Replayed",
    "job_by_id",
    "list_jobs",
    "rebuild",
    "row_of",
    "verify",
]
