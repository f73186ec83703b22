"""The projections there are, in the order in which their rows are written."""

from projector.projection import Projection
from projector.projections.builds import BUILDS
from projector.projections.daily_stats import DAILY_STATS
from projector.projections.jobs import JOBS
from projector.projections.phases import PHASES
from projector.projections.projects import PROJECTS

PROJECTIONS: tuple[Projection, ...] = (JOBS, PHASES, BUILDS, PROJECTS, DAILY_STATS)

__all__ = ["BUILDS", "DAILY_STATS", "JOBS", "PHASES", "PROJECTIONS", "PROJECTS"]
