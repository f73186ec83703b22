"""How it went: success, durations, costs."""

from datetime import date, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from projector import Stats, stats
from schemas import Slug
from service.api.parts import OwnParts, Tenant
from service.api.reading import ReadModel
from service.refusals import Unusable

USUAL_DAYS = 30
MOST_DAYS = 366
# The days around each are still in the calendar.
Day = Annotated[date, Query(ge=date(1900, 1, 1), le=date(2999, 12, 31))]
router = APIRouter()


@router.get("/v1/stats")
async def of_days(
    parts: OwnParts,
    owner: Tenant,
    reader: ReadModel,
    since: Day | None = None,
    until: Day | None = None,
    project: Annotated[Slug | None, Query()] = None,
) -> Stats:
    """What became of the tenant's jobs, by days (UTC): both counted, the last thirty by default."""
    until = until or parts.handler.clock().date()
    since = since or until - timedelta(days=USUAL_DAYS - 1)
    if since > until:
        raise Unusable("until", f"it is before since ({since})")
    if until - since >= timedelta(days=MOST_DAYS):
        raise Unusable("since", f"at most {MOST_DAYS} days are counted at a time, up to {until}")
    async with reader.connection("daily_stats", "jobs", "phases") as connection:
        return await stats(connection, owner, since=since, until=until, project=project)
