"""What can be asked of the read model. Plain functions: a connection in, typed rows out."""

from projector.queries.jobs import (
    JobRow,
    PhaseRow,
    UnknownCursor,
    job_by_id,
    list_jobs,
    living_previews,
    row_of,
    timeline,
    workspaces_of_ended,
)
from projector.queries.projects import (
    BuildRow,
    ProjectRow,
    build_by_number,
    list_builds,
    list_projects,
    project_by_id,
)
from projector.queries.statistics import DayRow, PhaseStats, Stats, Wait, stats, used_on

__all__ = [
    "BuildRow",
    "DayRow",
    "JobRow",
    "PhaseRow",
    "PhaseStats",
    "ProjectRow",
    "Stats",
    "UnknownCursor",
    "Wait",
    "build_by_number",
    "job_by_id",
    "list_builds",
    "list_jobs",
    "list_projects",
    "living_previews",
    "project_by_id",
    "row_of",
    "stats",
    "timeline",
    "used_on",
    "workspaces_of_ended",
]
