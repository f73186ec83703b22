"""Remembers the number of each project's newest archived build, whatever becomes of the archive."""

from collections.abc import Iterable
from decimal import Decimal

from eventstore import LogEntry
from eventstore.tables import last_builds_table
from projector.folding import Rows
from projector.projection import Key, Merge, Projection, Row
from schemas.events import JobReady

_LAST_BUILDS = Projection(last_builds_table, merge={"number": Merge.MOST})


def last_build_rows(entries: Iterable[LogEntry]) -> Rows:
    """The rows that remember the builds among these events."""
    rows: dict[Key, Row] = {}
    for _, event in entries:
        if isinstance(event.payload, JobReady):
            key = event.tenant, event.project
            _LAST_BUILDS.take(rows, (key, {"number": Decimal(event.payload.build_number)}))
    return {_LAST_BUILDS: rows}
