"""Folds events into rows, in memory: all that the read model is, before any of it is written."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from eventstore import LogEntry
from projector.errors import HistoryBroken, RowRefused
from projector.projection import Key, OfEvent, Projection, Row
from schemas import Job, Position, RecordedEvent, SchemaError, UndecodableEvent, evolve
from schemas.events import JobQueued, Unreadable

Rows = dict[Projection, dict[Key, Row]]

# What a history says that cannot be, and what a projection's own code raises over an event that it
# was not written for.
_CANNOT_FOLD = (
    HistoryBroken,
    SchemaError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


class Parked(NamedTuple):
    """A job whose events are not folded from `position` on, and why."""

    job: str
    tenant: str
    position: Position
    version: int
    type: str
    error: str


class Folding:
    """Events of any jobs, each job's in order, on the way to rows.

    `aside` tells from which position on a job's events are left out. A job that cannot be folded
    any further comes to `parked`; the others are not touched by it. Times of events are in UTC.
    """

    def __init__(
        self, projections: Iterable[Projection], aside: Mapping[str, Position] | None = None
    ) -> None:
        self.parked: list[Parked] = []
        self._aside = dict(aside or {})
        self._rows: Rows = {projection: {} for projection in projections}
        self._ends: dict[str, tuple[Job, Position]] = {}
        self._changes: list[tuple[Job | None, Job]] = []
        self._of_event: dict[type, list[tuple[Projection, OfEvent]]] = {}
        for projection in self._rows:
            for kind, fold in projection.of_event.items():
                self._of_event.setdefault(kind, []).append((projection, fold))

    def add(self, job: str, history: Iterable[LogEntry], states: dict[str, Job]) -> None:
        """Fold the next events of a job, which follow its state in `states`, and move that on."""
        aside = self._aside.get(job)
        state = since = states.get(job)
        end: Position | None = None
        for position, event in history:
            if aside is not None and position >= aside:
                break
            try:
                after = advance(state, event)
                said = [
                    (projection, change)
                    for projection, fold in self._of_event.get(type(event.payload), ())
                    if (change := fold(state, event, after))
                ]
            except _CANNOT_FOLD as error:
                self._aside[job] = position
                self.parked.append(parked_at(position, event, error))
                break
            for projection, change in said:
                projection.take(self._rows[projection], change)
            # A sum may be one of a day: what is told of together does not reach over midnight.
            if state is not None and event.time.date() != state.updated_at.date():
                if state is not since:
                    self._changes.append((since, state))
                since = state
            state, end = after, position
        if state is not None and end is not None:
            states[job] = state
            self._ends[job] = state, end
            self._changes.append((since, state))

    def rows(self) -> Rows:
        """The rows that all events so far lead to. Raises `RowRefused`."""
        ends = self._ends
        try:
            for projection, rows in self._rows.items():
                of_job = projection.of_job
                if of_job is not None:
                    made = [of_job(state, position) for state, position in ends.values()]
                    rows.update({projection.key_of(row): row for row in made if row is not None})
                if projection.of_sum is not None:
                    for before, after in self._changes:
                        if change := projection.added(before, after):
                            projection.take(rows, change)
        except _CANNOT_FOLD as error:
            raise RowRefused(projection.name, error) from error
        ends.clear()
        self._changes.clear()
        return self._rows


def fold_entries(
    projections: Iterable[Projection],
    entries: Iterable[LogEntry],
    states: dict[str, Job],
    aside: Mapping[str, Position],
) -> Folding:
    """A folding of all these entries, which moves the jobs' `states` on."""
    folding = Folding(projections, aside)
    for job, history in by_job(entries).items():
        folding.add(job, history, states)
    return folding


def by_job(entries: Iterable[LogEntry]) -> dict[str, list[LogEntry]]:
    """The entries of each job, in their order."""
    histories: dict[str, list[LogEntry]] = {}
    for entry in entries:
        histories.setdefault(entry.event.job, []).append(entry)
    return histories


def advance(job: Job | None, event: RecordedEvent) -> Job:
    """`evolve`, for a history that must be whole.

    Raises `HistoryBroken` when the event is not the next of its job, when the first is no JobQueued
    and when a later one is one; `UndecodableEvent`.
    """
    expected = job.version + 1 if job else 1
    if event.version != expected or (job and type(event.payload) is JobQueued):
        raise HistoryBroken(event.job, expected, event.version)
    evolved = evolve(job, event)
    if evolved is None:
        if isinstance(event.payload, Unreadable):
            raise UndecodableEvent(event.type, event.data, event.payload.reason)
        raise HistoryBroken(event.job, expected, event.version)
    return evolved


def parked_at(position: Position, event: RecordedEvent, error: Exception) -> Parked:
    """The parking of an event's job, from this event on."""
    return Parked(
        event.job,
        event.tenant,
        position,
        event.version,
        event.type,
        (str(error) or type(error).__name__)[:2_000],
    )
