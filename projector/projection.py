"""What a projection is: a table, and a fold from events to its rows.

Write one as a file of `projector/projections/` and name it in that folder's `__init__.py`. Its rows
come from a job's state: a row for each job (`of_job`), or one that many jobs add to (`of_sum`); or
from single events (`of_event`). A row that is there already takes up the new one column by column,
as `merge` says. Sums and maxima come out the same in any order, which is what lets a rebuild fold
jobs in parallel.

A new projection needs a migration that makes its table. Projectors fold into it from the moment
that the archive has been folded into it, which they see to themselves, while the others run on.
A fold that changes gets the next `version`: that is how its rows are known to be old.
"""

import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from sqlalchemy import Column, Table

from schemas import Job, Position, RecordedEvent

Row = dict[str, Any]
Key = tuple[Any, ...]
Change = tuple[Key, Row]
OfEvent = Callable[[Job | None, RecordedEvent, Job], Change | None]


class Merge(Enum):
    """What becomes of a column of a row that is there already. `NULL` leaves all but REPLACE be.

    Postgres holds what is added against the table's CHECKs before it adds it: one that speaks of
    sums would refuse the summands.
    """

    REPLACE = "excluded.{0}"
    KNOWN = "coalesce(excluded.{0}, {1}.{0})"
    ADD = "coalesce({1}.{0} + excluded.{0}, {1}.{0}, excluded.{0})"
    MOST = "greatest(excluded.{0}, {1}.{0})"
    LEAST = "least(excluded.{0}, {1}.{0})"


_IN_PYTHON: Mapping[Merge, Callable[[Any, Any], Any]] = {
    Merge.KNOWN: lambda _, new: new,
    Merge.ADD: operator.add,
    Merge.MOST: max,
    Merge.LEAST: min,
}


@dataclass(frozen=True, eq=False)
class Projection:
    """A table of the read model and the fold that fills it.

    - `of_job`: the row of a job in this state, whose last event stands at the position, or None.
      It may hold more than the table's columns.
    - `of_sum`: what a job in this state has added to a row of many, all in all: the row's key and
      all its other columns. The row takes up by how much that is more than it was before. What is
      told of together happened on one day in UTC, that of `updated_at`.
    - `of_event`: by type of payload, what an event changes, between the job before it (None if it
      is the first) and after it: the key of a row, and those of its other columns that the event
      says something of, all that are merged by REPLACE among them.
    - `merge`: for columns that do not simply take the newest value.
    - `job`: the column that names the job, if each row belongs to one job.
    """

    table: Table
    of_job: Callable[[Job, Position], Row | None] | None = None
    of_sum: Callable[[Job], Change] | None = None
    of_event: Mapping[type, OfEvent] = field(default_factory=dict)
    merge: Mapping[str, Merge] = field(default_factory=dict)
    job: str | None = None
    version: int = 1

    @property
    def name(self) -> str:
        """The name of its table."""
        return self.table.name

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The columns of the primary key."""
        return _names(self.table.primary_key)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns."""
        return _names(self.table.columns)

    @cached_property
    def key_of(self) -> Callable[[Row], Key]:
        """The primary key of a row."""
        if len(self.key) == 1:
            (name,) = self.key
            return lambda row: (row[name],)
        return operator.itemgetter(*self.key)

    @cached_property
    def values_of(self) -> Callable[[Row], tuple[Any, ...]]:
        """All of a row, in the order of the table."""
        return operator.itemgetter(*self.columns)

    @cached_property
    def _neutral(self) -> Row:
        """What a row's columns are as long as no event has said anything of them."""
        return {name: 0 if self.merge.get(name) is Merge.ADD else None for name in self.columns}

    @cached_property
    def _merges(self) -> Mapping[str, Callable[[Any, Any], Any]]:
        return {name: _IN_PYTHON[how] for name, how in self.merge.items() if how in _IN_PYTHON}

    @cached_property
    def _sums(self) -> tuple[str, ...]:
        return tuple(name for name, how in self.merge.items() if how is Merge.ADD)

    def new(self, key: Key, said: Row) -> Row:
        """A whole row of this key, of which this is said."""
        row = self._neutral.copy()
        row.update(zip(self.key, key, strict=True))
        row.update(said)
        return row

    def added(self, before: Job | None, after: Job) -> Change | None:
        """What a job adds to a row of many when its state becomes another."""
        assert self.of_sum is not None  # noqa: S101 - asked only where there is one
        key, said = self.of_sum(after)
        if before is not None:
            _, had = self.of_sum(before)
            if said == had:
                return None
            for name in self._sums:
                said[name] -= had[name]
        return key, said

    def take(self, rows: dict[Key, Row], change: Change) -> None:
        """Let rows by their keys take up a change."""
        key, said = change
        there = rows.get(key)
        if there is None:
            rows[key] = self.new(key, said)
        else:
            self.merge_into(there, said)

    def merge_into(self, there: Row, said: Row) -> None:
        """Let a whole row take up what is said of it."""
        merges = self._merges
        for name, new in said.items():
            if name not in merges:
                there[name] = new
            elif new is not None:
                old = there[name]
                there[name] = new if old is None else merges[name](old, new)


def _names(columns: Iterable[Column[Any]]) -> tuple[str, ...]:
    # SQLAlchemy's are a kind of str that dicts are slow with.
    return tuple(sys.intern(str(column.name)) for column in columns)
