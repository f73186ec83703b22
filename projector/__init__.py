"""The tail water: folds the log into Postgres, and answers questions about it."""

from projector.comparing import Difference
from projector.errors import HistoryBroken, NotParked, ProjectorError, ReplayRefused
from projector.folding import advance
from projector.parking import ParkedJob, discard, parked_jobs, retry
from projector.projector import Projector
from projector.queries import (
    BuildRow,
    JobRow,
    PhaseRow,
    ProjectRow,
    Stats,
    UnknownCursor,
    build_by_number,
    job_by_id,
    list_builds,
    list_jobs,
    list_projects,
    living_previews,
    project_by_id,
    row_of,
    stats,
    timeline,
    used_on,
    workspaces_of_ended,
)
from projector.replay import Replayed, backfill, processes, rebuild, verify
from projector.standing import Standing, standing
from projector.writing import checkpoints_of

__all__ = [
    "BuildRow",
    "Difference",
    "HistoryBroken",
    "JobRow",
    "NotParked",
    "ParkedJob",
    "PhaseRow",
    "ProjectRow",
    "Projector",
    "ProjectorError",
    "ReplayRefused",
    "Replayed",
    "Standing",
    "Stats",
    "UnknownCursor",
    "advance",
    "backfill",
    "build_by_number",
    "checkpoints_of",
    "discard",
    "job_by_id",
    "list_builds",
    "list_jobs",
    "list_projects",
    "living_previews",
    "parked_jobs",
    "processes",
    "project_by_id",
    "rebuild",
    "retry",
    "row_of",
    "standing",
    "stats",
    "timeline",
    "used_on",
    "verify",
    "workspaces_of_ended",
]
