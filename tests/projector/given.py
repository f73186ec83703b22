"""`given(events) … == rows`: what a projection makes of events, without a server."""

from datetime import datetime, timedelta

from eventstore import LogEntry
from projector.folding import fold_entries
from projector.projection import Projection, Row
from schemas import Position
from schemas.events import JobQueued, Known
from tests.histories import JOB, NOON, PROJECT, TENANT, recorded

OTHER_JOB = "01900000-0000-7000-8000-000000000002"
THIRD_JOB = "01900000-0000-7000-8000-000000000003"


class Given:
    """Jobs, one history behind the other; in the log they stand in this order."""

    def __init__(self) -> None:
        self._entries: list[LogEntry] = []

    def and_job(
        self,
        *history: Known,
        job: str = OTHER_JOB,
        tenant: str = TENANT,
        project: str = PROJECT,
    ) -> "Given":
        """The same, and behind it this job."""
        payloads = [
            payload.model_copy(update={"tenant": tenant, "project_id": project})
            if isinstance(payload, JobQueued)
            else payload
            for payload in history
        ]
        for event in recorded(payloads, job=job, tenant=tenant, project=project):
            self._entries.append(LogEntry(Position(2, 1, len(self._entries) + 1), event))
        return self

    def rows(self, projection: Projection, *columns: str) -> list[Row]:
        """The rows of a projection by their keys; with `columns`, only these of each."""
        folding = fold_entries([projection], self._entries, {}, {})
        assert not folding.parked
        rows = folding.rows()[projection]
        return [
            {name: row[name] for name in columns or projection.columns}
            for _, row in sorted(rows.items())
        ]

    def values(self, projection: Projection, *columns: str) -> list[tuple[object, ...]]:
        """These columns of each row, by their keys."""
        return [tuple(row.values()) for row in self.rows(projection, *columns)]


def given(*history: Known, tenant: str = TENANT, project: str = PROJECT) -> Given:
    """A job to which this happened."""
    return Given().and_job(*history, job=JOB, tenant=tenant, project=project)


def at(version: int) -> datetime:
    """When the event of this version happened, of whatever job."""
    return NOON + timedelta(seconds=version)
