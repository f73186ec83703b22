"""Folds events into rows, in memory: all that the read model is, before any of it is written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from eventstore import LogEntry
from projector.errors import HistoryBroken
from projector.projection import Change, Key, Projection, Row, Step
from schemas import Job, Position, RecordedEvent, SchemaError, UndecodableEvent, evolve
from schemas.events import Unreadable

Rows = dict[Projection, dict[Key, Row]]
_Fold = Callable[[Step], Iterable[Change]]

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

    `states` are the jobs as far as they were folded before; it grows with them. `aside` tells from
    which position on a job's events are left out. A job that cannot be folded any further comes to
    `parked`; the others are not touched by it.
    """

    def __init__(
        self,
        projections: Iterable[Projection],
        states: dict[str, Job] | None = None,
        aside: Mapping[str, Position] | None = None,
    ) -> None:
        self.states = {} if states is None else states
        self.parked: list[Parked] = []
        self._aside = dict(aside or {})
        self._rows: Rows = {projection: {} for projection in projections}
        self._ends: dict[str, Position] = {}
        self._of_event: dict[type, list[tuple[Projection, _Fold]]] = {}
        for projection in self._rows:
            for kind, fold in projection.of_event.items():
                self._of_event.setdefault(kind, []).append((projection, fold))

    def add(self, position: Position, event: RecordedEvent) -> None:
        """Fold one more event."""
        job = event.job
        if self._aside and job in self._aside and position >= self._aside[job]:
            return
        before = self.states.get(job)
        try:
            after = advance(before, event)
            changes = self._changes(before, event, after)
        except _CANNOT_FOLD as error:
            self._aside[job] = position
            self.parked.append(parked_at(position, event, error))
            return
        self.states[job] = after
        self._ends[job] = position
        for projection, (key, said) in changes:
            rows = self._rows[projection]
            there = rows.get(key)
            if there is None:
                rows[key] = projection.new(key, said)
            else:
                projection.merge_into(there, said)

    def _changes(
        self, before: Job | None, event: RecordedEvent, after: Job
    ) -> Sequence[tuple[Projection, Change]]:
        folds = self._of_event.get(type(event.payload))
        if folds is None:
            return ()
        step = Step(before, event, after)
        return [(projection, change) for projection, fold in folds for change in fold(step)]

    def rows(self) -> Rows:
        """The rows that all events so far lead to."""
        for projection, rows in self._rows.items():
            if projection.of_job is not None:
                for job, position in self._ends.items():
                    row = projection.of_job(self.states[job], position)
                    if row is not None:
                        rows[projection.key_of(row)] = row
        self._ends.clear()
        return self._rows


def fold_entries(
    projections: Iterable[Projection],
    entries: Sequence[LogEntry],
    states: dict[str, Job],
    aside: Mapping[str, Position],
) -> Folding:
    """A folding of all these entries."""
    folding = Folding(projections, states, aside)
    for entry in entries:
        folding.add(entry.position, entry.event)
    return folding


def advance(job: Job | None, event: RecordedEvent) -> Job:
    """`evolve`, for a history that must be whole.

    Raises `HistoryBroken` when the event is not the next of its job, or the first is no JobQueued;
    `UndecodableEvent`.
    """
    expected = job.version + 1 if job else 1
    if event.version != expected:
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
